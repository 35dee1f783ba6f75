// Calls of teams on a device.

#pragma once

#include "cuda/machine/grid.cuh"
#include "cuda/team/team_plan.cuh"
#include "instances/dense.h"
