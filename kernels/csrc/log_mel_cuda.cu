// log_mel on a GPU: a block for each clip and tile of frames.
#include <cuda_runtime.h>

#include "log_mel_kernel.cuh"
#include "native.h"

namespace cacophony {
namespace {

constexpr int64_t kMostTiles = 65535;  // of a grid's second dimension; a longer clip's blocks take several

template <class Sample>
void launch(const void* wave, const int64_t* wave_offsets, const int64_t* frame_offsets, int64_t clips,
            int64_t longest, float* out, cudaStream_t stream) {
  const int64_t tiles = (longest + kTileFrames - 1) / kTileFrames;
  const dim3 grid(static_cast<unsigned>(clips), static_cast<unsigned>(tiles < kMostTiles ? tiles : kMostTiles));
  log_mel_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const Sample*>(wave), wave_offsets, frame_offsets, out);
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
  const auto launch_for = is_int16 ? launch<int16_t> : launch<float>;
  launch_for(wave, wave_offsets, frame_offsets, clips, longest, out, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}
