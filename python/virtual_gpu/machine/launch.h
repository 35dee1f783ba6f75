#pragma once

#include "machine.h"

namespace virtual_gpu {

// Runs the machine's program as its dimensions say; `together`: all blocks at once, as a cooperative launch. False
// where it had to end early, for a reason that is among the reports.
bool run_launch(Machine&, bool together);

}  // namespace virtual_gpu
