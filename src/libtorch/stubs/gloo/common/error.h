// Gloo's headers, which the PyTorch wheel leaves out: as much of them as ProcessGroupGloo.hpp needs. What is declared
// here is defined in libtorch_cpu.so.

#pragma once

#include <stdexcept>
