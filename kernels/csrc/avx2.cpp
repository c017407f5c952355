// Processors with AVX2 and FMA: Intel from Haswell, AMD from Zen on.
#include "unit.h"

WORKBENCH_ENCODER()
