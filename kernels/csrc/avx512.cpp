// Processors with AVX-512 but none of its products of small numbers, such as Skylake-X.
#include "unit.h"

WORKBENCH_ENCODER()
