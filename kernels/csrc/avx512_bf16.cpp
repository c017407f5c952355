// Processors with AVX-512 and products of int8 as of bfloat16: Intel from Cooper Lake and Sapphire Rapids on, AMD from
// Zen 4 on.
#include "unit.h"

#include "bf16.h"
#include "quantised.h"
#include "vnni.h"

WORKBENCH_ENCODER(Low<INT8, Int8Code<VnniKernel<VnniVector>>, WIDEST_INT8>, Low<BF16, Bf16Code, WIDEST_BF16>)
