// The time.

#pragma once

namespace memformer::cpu {

// Seconds since a moment of the process's past; never runs backwards.
double seconds_now();

}  // namespace memformer::cpu
