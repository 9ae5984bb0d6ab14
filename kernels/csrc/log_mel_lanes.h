// Frames of one clip on a CPU, one a lane of a vector. Compiled once for each instruction set, by log_mel_lanes.cpp.
#pragma once

#include <stdint.h>

namespace cacophony {

// A run of samples of which only those in [0, count) exist; the others are zeros.
struct Clip {
  const void* samples;
  bool is_int16;
  int64_t count;
};

// Computes frames [first, first + count) of a clip into `out`, row after row of 128 bands.
using ComputeFrames = void (*)(const Clip& clip, int64_t first, int64_t count, float* out);

void compute_frames_baseline(const Clip& clip, int64_t first, int64_t count, float* out);
#ifdef CACOPHONY_X86
void compute_frames_avx2(const Clip& clip, int64_t first, int64_t count, float* out);
void compute_frames_avx512(const Clip& clip, int64_t first, int64_t count, float* out);
#endif

}  // namespace cacophony
