// Registers that groups of four warps leave each other (sm_90a).
#pragma once

namespace headrace {

// From here on, each thread of the four warps has so many registers: what some leave, others take.
template <int COUNT>
__device__ __forceinline__ void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace headrace
