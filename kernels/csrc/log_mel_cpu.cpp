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
  int64_t clip, first, frames;
};

struct Batch {
  const void* wave;
  bool is_int16;
  const int64_t* wave_offsets;
  const int64_t* frame_offsets;
  float* out;

  void compute(const Chunk& chunk) const {
    const int64_t begin = wave_offsets[chunk.clip];
    const void* samples = is_int16 ? static_cast<const void*>(static_cast<const int16_t*>(wave) + begin)
                                   : static_cast<const void*>(static_cast<const float*>(wave) + begin);
    instructions().compute({samples, is_int16, wave_offsets[chunk.clip + 1] - begin}, chunk.first, chunk.frames,
                           out + (frame_offsets[chunk.clip] + chunk.first) * kBands);
  }
};

std::vector<Chunk> cut(const int64_t* frame_offsets, int64_t clips) {
  std::vector<Chunk> chunks;
  for (int64_t clip = 0; clip < clips; ++clip) {
    const int64_t frames = frame_offsets[clip + 1] - frame_offsets[clip];
    for (int64_t first = 0; first < frames; first += kChunkFrames)
      chunks.push_back({clip, first, std::min(kChunkFrames, frames - first)});
  }
  return chunks;
}

}  // namespace
}  // namespace cacophony

using namespace cacophony;

int cacophony_cpu_abi() { return kAbiVersion; }

const char* cacophony_cpu_instructions() { return instructions().name; }

void cacophony_log_mel_cpu(const void* wave, int is_int16, const int64_t* wave_offsets, const int64_t* frame_offsets,
                           int64_t clips, int threads, float* out) {
  const Batch batch{wave, is_int16 != 0, wave_offsets, frame_offsets, out};
  const std::vector<Chunk> chunks = cut(frame_offsets, clips);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) batch.compute(chunks[i]);
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min<int64_t>(threads, frame_offsets[clips] / kChunkFrames);
  try {
    for (int64_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no thread to spare: those that started, and this one, do all the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}
