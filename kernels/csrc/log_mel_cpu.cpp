// log_mel on a CPU: chunks of a few hundred frames of one clip, which threads take in turn.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "log_mel_lanes.h"
#include "log_mel_tables.h"
#include "native.h"

namespace cacophony {
namespace {

constexpr int64_t kChunkFrames = 256;  // a few times what starting a thread takes

struct InstructionSet {
  const char* name;
  ComputeFrames compute;
};

InstructionSet widest() {
#ifdef CACOPHONY_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
    return {"avx512", compute_frames_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", compute_frames_avx2};
#endif
  return {"baseline", compute_frames_baseline};
}

const InstructionSet& instructions() {
  static const InstructionSet chosen = widest();
  return chosen;
}

struct Chunk {
  int64_t clip, first, count;  // frames, or columns
};

// Chunks of at most `size`; clip c has offsets[c] to offsets[c + 1], in `units`.
std::vector<Chunk> cut(const int64_t* offsets, int64_t units, int64_t clips, int64_t size) {
  std::vector<Chunk> chunks;
  for (int64_t clip = 0; clip < clips; ++clip) {
    const int64_t count = (offsets[clip + 1] - offsets[clip]) / units;
    for (int64_t first = 0; first < count; first += size)
      chunks.push_back({clip, first, std::min(size, count - first)});
  }
  return chunks;
}

// Calls `compute` on every chunk, on at most `threads` threads, the caller's one of them; fewer where `frames` in all
// are not worth so many.
template <class Compute>
void share(const std::vector<Chunk>& chunks, int64_t frames, int threads, const Compute& compute) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) compute(chunks[i]);
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min<int64_t>(threads, frames / kChunkFrames);
  try {
    for (int64_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no thread to spare: those that started, and this one, do all the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

Clip clip_of(const void* wave, bool is_int16, const int64_t* wave_offsets, int64_t clip) {
  const int64_t begin = wave_offsets[clip];
  const void* samples = is_int16 ? static_cast<const void*>(static_cast<const int16_t*>(wave) + begin)
                                 : static_cast<const void*>(static_cast<const float*>(wave) + begin);
  return {samples, is_int16, wave_offsets[clip + 1] - begin};
}

}  // namespace
}  // namespace cacophony

using namespace cacophony;

int cacophony_cpu_abi() { return kAbiVersion; }

const char* cacophony_cpu_instructions() { return instructions().name; }

void cacophony_log_mel_cpu(const void* wave, int is_int16, const int64_t* wave_offsets, const int64_t* frame_offsets,
                           int64_t clips, int threads, float* out) {
  const std::vector<Chunk> chunks = cut(frame_offsets, 1, clips, kChunkFrames);
  share(chunks, frame_offsets[clips], threads, [&](const Chunk& chunk) {
    instructions().compute(clip_of(wave, is_int16, wave_offsets, chunk.clip), chunk.first, chunk.count,
                           out + (frame_offsets[chunk.clip] + chunk.first) * kBands);
  });
}

void cacophony_log_mel_patches_cpu(const void* wave, int is_int16, const int64_t* wave_offsets,
                                   const int64_t* patch_offsets, int64_t clips, const int32_t* rows, int64_t count,
                                   int threads, float* out) {
  const auto is_wanted = [=](int32_t row) { return 0 <= row && row < count; };
  const std::vector<Chunk> chunks = cut(patch_offsets, kColumnPatches, clips, kChunkFrames / kPatchSide);
  share(chunks, patch_offsets[clips] / kColumnPatches * kPatchSide, threads, [&](const Chunk& chunk) {
    const Clip clip = clip_of(wave, is_int16, wave_offsets, chunk.clip);
    float frames[kPatchSide * kBands];
    for (int64_t column = chunk.first; column < chunk.first + chunk.count; ++column) {
      const int32_t* const own_rows = rows + patch_offsets[chunk.clip] + column * kColumnPatches;
      if (std::none_of(own_rows, own_rows + kColumnPatches, is_wanted)) continue;
      instructions().compute(clip, column * kPatchSide, kPatchSide, frames);
      for (int patch = 0; patch < kColumnPatches; ++patch) {
        if (!is_wanted(own_rows[patch])) continue;
        float* const pixels = out + int64_t{own_rows[patch]} * kPatchPixels;
        for (int frame = 0; frame < kPatchSide; ++frame)
          std::copy_n(frames + frame * kBands + patch * kPatchSide, kPatchSide, pixels + frame * kPatchSide);
      }
    }
  });
}
