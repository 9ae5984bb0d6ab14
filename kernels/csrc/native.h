// The C ABI that kernels/native.py loads. `kAbiVersion` changes with every change of a signature here.
#pragma once

#include <stdint.h>

namespace cacophony {
constexpr int kAbiVersion = 2;
}

#define CACOPHONY_EXPORT extern "C" __attribute__((visibility("default")))

// In the library for CPUs:

CACOPHONY_EXPORT int cacophony_cpu_abi();

// The instruction set that is used: "avx512", "avx2" or "baseline".
CACOPHONY_EXPORT const char* cacophony_cpu_instructions();

// `wave` is int16 or float, clip c is samples [wave_offsets[c], wave_offsets[c + 1]) of it and becomes rows
// [frame_offsets[c], frame_offsets[c + 1]) of `out`, 128 floats each. Works on `threads` threads, the caller's one of
// them; the same bits with any number.
CACOPHONY_EXPORT void cacophony_log_mel_cpu(const void* wave, int is_int16, const int64_t* wave_offsets,
                                            const int64_t* frame_offsets, int64_t clips, int threads, float* out);

// The same frames as patches of 16 frames by 16 bands, a column of eight after another: clip c has patches
// [patch_offsets[c], patch_offsets[c + 1]), and the frames behind its last whole column are in none. Patch n becomes row
// rows[n] of `out`, 256 floats frame after frame; it is left out where that is not in [0, count). A column of which no
// patch is wanted is not computed, a row that is no patch's stays as it is, and no two patches may have the same row.
CACOPHONY_EXPORT void cacophony_log_mel_patches_cpu(const void* wave, int is_int16, const int64_t* wave_offsets,
                                                    const int64_t* patch_offsets, int64_t clips, const int32_t* rows,
                                                    int64_t count, int threads, float* out);

// In the library for GPUs:

CACOPHONY_EXPORT int cacophony_cuda_abi();

// CUDA's version times 1000: of the runtime in the library, and of the driver (0 without one).
CACOPHONY_EXPORT void cacophony_cuda_versions(int* runtime, int* driver);

CACOPHONY_EXPORT const char* cacophony_cuda_error(int code);

// As on a CPU, with all pointers on `device`, enqueued on its `stream`; `longest` is the largest number of frames of a
// clip. Returns a cudaError_t.
CACOPHONY_EXPORT int cacophony_log_mel_cuda(const void* wave, int is_int16, const int64_t* wave_offsets,
                                            const int64_t* frame_offsets, int64_t clips, int64_t longest, float* out,
                                            int device, void* stream);

// `longest` is the largest number of columns of a clip.
CACOPHONY_EXPORT int cacophony_log_mel_patches_cuda(const void* wave, int is_int16, const int64_t* wave_offsets,
                                                    const int64_t* patch_offsets, int64_t clips, int64_t longest,
                                                    const int32_t* rows, int64_t count, float* out, int device,
                                                    void* stream);
