// log_mel on a GPU: a block for each clip and tile of frames.
#include <cuda_runtime.h>

#include "log_mel_kernel.cuh"
#include "native.h"

namespace cacophony {
namespace {

constexpr int64_t kMostTiles = 65535;  // of a grid's second dimension; a longer clip's blocks take several

// A block for each clip and tile of the longest.
dim3 grid_of(int64_t clips, int64_t tiles) {
  return dim3(static_cast<unsigned>(clips), static_cast<unsigned>(tiles < kMostTiles ? tiles : kMostTiles));
}

}  // namespace
}  // namespace cacophony

using namespace cacophony;

int cacophony_cuda_abi() { return kAbiVersion; }

void cacophony_cuda_versions(int* runtime, int* driver) {
  if (cudaRuntimeGetVersion(runtime) != cudaSuccess) *runtime = 0;
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
}

const char* cacophony_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int cacophony_log_mel_cuda(const void* wave, int is_int16, const int64_t* wave_offsets, const int64_t* frame_offsets,
                           int64_t clips, int64_t longest, float* out, int device, void* stream) {
  if (clips == 0 || longest == 0) return cudaSuccess;
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  const dim3 grid = grid_of(clips, (longest + kTileFrames - 1) / kTileFrames);
  const auto launch = [&](auto* samples) {
    log_mel_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(samples, wave_offsets, frame_offsets, out);
  };
  if (is_int16)
    launch(static_cast<const int16_t*>(wave));
  else
    launch(static_cast<const float*>(wave));
  return cudaGetLastError();
}

int cacophony_log_mel_patches_cuda(const void* wave, int is_int16, const int64_t* wave_offsets,
                                   const int64_t* patch_offsets, int64_t clips, int64_t longest, const int32_t* rows,
                                   int64_t count, float* out, int device, void* stream) {
  if (clips == 0 || longest == 0 || count == 0) return cudaSuccess;
  const cudaError_t chosen = cudaSetDevice(device);
  if (chosen != cudaSuccess) return chosen;
  const dim3 grid = grid_of(clips, longest);
  const auto launch = [&](auto* samples) {
    log_mel_patches_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(samples, wave_offsets,
                                                                                     patch_offsets, rows, count, out);
  };
  if (is_int16)
    launch(static_cast<const int16_t*>(wave));
  else
    launch(static_cast<const float*>(wave));
  return cudaGetLastError();
}
