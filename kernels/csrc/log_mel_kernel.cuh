// The kernel of log_mel: a block computes sixteen frames of one clip from their samples in shared memory. A C++
// compiler can read it too: tests/kernels/csrc runs it on a CPU, a thread for each of the GPU's.
#pragma once

#include <stdint.h>

#include "log_mel.h"

namespace cacophony {
namespace {

constexpr int kTileFrames = 16;
constexpr int kTileSamples = (kTileFrames - 1) * kHop + kWindow;
constexpr int kThreads = kTileFrames * kRadix;
constexpr int kBlocksPerProcessor = 4;

__device__ constexpr Tables kTables = make_tables();

struct Shared {
  Scratch<float> scratch[kTileFrames];
  float samples[kTileSamples];
};

__device__ float load_sample(const float* from) { return __ldg(from); }
__device__ float load_sample(const int16_t* from) { return __ldg(from) * (1.0f / 32768.0f); }

// Frames overlap: a sample is read once for the two or three frames it is in.
template <class Sample>
__device__ void load_samples(const Sample* samples, int64_t count, Shared& shared) {
  for (int i = threadIdx.x; i < kTileSamples; i += kThreads)
    shared.samples[i] = i < count ? load_sample(samples + i) : 0.0f;
}

template <class Sample>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    log_mel_kernel(const Sample* __restrict__ wave, const int64_t* __restrict__ wave_offsets,
                   const int64_t* __restrict__ frame_offsets, float* __restrict__ out) {
  __shared__ Shared shared;
  const int64_t begin = wave_offsets[blockIdx.x], samples = wave_offsets[blockIdx.x + 1] - begin;
  const int64_t first_row = frame_offsets[blockIdx.x], frames = frame_offsets[blockIdx.x + 1] - first_row;
  const int t = threadIdx.x % kRadix, in_tile = threadIdx.x / kRadix;
  Scratch<float>& scratch = shared.scratch[in_tile];
  const float* const own_samples = shared.samples + in_tile * kHop;

  for (int64_t first = int64_t{blockIdx.y} * kTileFrames; first < frames; first += int64_t{gridDim.y} * kTileFrames) {
    __syncthreads();  // the samples of the tile before are no longer needed
    load_samples(wave + begin + first * kHop, samples - first * kHop, shared);
    __syncthreads();
    transform_column<float>(kTables, t, [=](int k) { return own_samples[k]; }, scratch);
    __syncwarp();
    transform_row<float>(t, scratch);
    __syncwarp();
    take_magnitudes<float>(kTables, t, scratch);
    __syncwarp();
    const int64_t frame = first + in_tile;
    if (frame < frames)
      for (int band = t; band < kBands; band += kRadix)
        out[(first_row + frame) * kBands + band] = scaled_log(mel_band(kTables, band, scratch));
  }
}

}  // namespace
}  // namespace cacophony
