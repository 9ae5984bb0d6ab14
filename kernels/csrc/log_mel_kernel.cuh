// The kernels of log_mel: a block computes sixteen frames of one clip from their samples in shared memory. A C++
// compiler can read them too: tests/kernels/csrc runs them on a CPU, a thread for each of the GPU's.
#pragma once

#include <stdint.h>

#include "log_mel.h"

namespace cacophony {
namespace {

constexpr int kTileFrames = kPatchSide;  // so that a tile is a column of patches
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

// Takes the tile's frames through all but their bands: thread t of a frame may then ask `scratch` for any of them.
template <class Sample>
__device__ __forceinline__ void transform_tile(const Sample* samples, int64_t count, Shared& shared,
                                               Scratch<float>& scratch) {
  const int t = threadIdx.x % kRadix;
  const float* const own_samples = shared.samples + threadIdx.x / kRadix * kHop;
  __syncthreads();  // the samples of the tile before are no longer needed
  load_samples(samples, count, shared);
  __syncthreads();
  transform_column<float>(kTables, t, [=](int k) { return own_samples[k]; }, scratch);
  __syncwarp();
  transform_row<float>(t, scratch);
  __syncwarp();
  take_magnitudes<float>(kTables, t, scratch);
  __syncwarp();
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

  for (int64_t first = int64_t{blockIdx.y} * kTileFrames; first < frames; first += int64_t{gridDim.y} * kTileFrames) {
    transform_tile(wave + begin + first * kHop, samples - first * kHop, shared, scratch);
    const int64_t frame = first + in_tile;
    if (frame < frames)
      for (int band = t; band < kBands; band += kRadix)
        out[(first_row + frame) * kBands + band] = scaled_log(mel_band(kTables, band, scratch));
  }
}

__device__ __forceinline__ bool is_wanted(int32_t row, int64_t count) { return 0 <= row && row < count; }

template <class Sample>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    log_mel_patches_kernel(const Sample* __restrict__ wave, const int64_t* __restrict__ wave_offsets,
                           const int64_t* __restrict__ patch_offsets, const int32_t* __restrict__ rows, int64_t count,
                           float* __restrict__ out) {
  __shared__ Shared shared;
  const int64_t begin = wave_offsets[blockIdx.x], samples = wave_offsets[blockIdx.x + 1] - begin;
  const int64_t first_patch = patch_offsets[blockIdx.x], end_patch = patch_offsets[blockIdx.x + 1];
  const int t = threadIdx.x % kRadix, in_tile = threadIdx.x / kRadix;
  Scratch<float>& scratch = shared.scratch[in_tile];

  for (int64_t column = blockIdx.y; first_patch + column * kColumnPatches < end_patch; column += gridDim.y) {
    const int32_t* const own_rows = rows + first_patch + column * kColumnPatches;
    bool any = false;  // the same for the whole block
    for (int patch = 0; patch < kColumnPatches; ++patch) any |= is_wanted(__ldg(own_rows + patch), count);
    if (!any) continue;
    const int64_t first = column * kTileFrames;
    transform_tile(wave + begin + first * kHop, samples - first * kHop, shared, scratch);
    for (int patch = 0; patch < kColumnPatches; ++patch) {
      const int32_t row = __ldg(own_rows + patch);
      if (is_wanted(row, count))
        out[int64_t{row} * kPatchPixels + in_tile * kPatchSide + t] =
            scaled_log(mel_band(kTables, patch * kPatchSide + t, scratch));
    }
  }
}

}  // namespace
}  // namespace cacophony
