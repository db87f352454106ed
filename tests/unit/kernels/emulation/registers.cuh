// kernels/cuda/registers.cuh for fibers, which have as many as they want.
#pragma once

namespace headrace {

template <int COUNT>
void leave_registers() {}
template <int COUNT>
void take_registers() {}

}  // namespace headrace
