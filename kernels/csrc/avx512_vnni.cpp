// Processors with AVX-512 and its int8 products: Intel from Cascade Lake and Ice Lake on, AMD from Zen 4 on.
#include "unit.h"

#include "quantised.h"
#include "vnni.h"

WORKBENCH_ENCODER(Low<INT8, Int8Code<VnniKernel<VnniVector>>, WIDEST_INT8>)
