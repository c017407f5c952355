// Any processor, with what its architecture guarantees: SSE2 on x86-64, NEON on aarch64.
#include "unit.h"

WORKBENCH_ENCODER()
