// Every implementation in kernels/csrc against the definition in double, on buffers without a sample to spare: what
// reads or writes beside them is seen by a sanitizer. Prints the implementations it checked; returns 1 at an error.
#include "cuda_on_cpu.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>

#include "log_mel_kernel.cuh"
#include "log_mel_lanes.h"
#include "native.h"

using namespace cacophony;

namespace {

constexpr double kBudget = 2e-4;
const std::vector<int64_t> kLengths{1, 0, 159, 160, 161, 399, 400, 401, 2400, 2561, 2719, 2720, 2721, 0, 5284};

// Offsets, samples and expected frames of a batch of noise.
template <class Sample>
struct Batch {
  std::vector<int64_t> wave_offsets{0}, frame_offsets{0};
  std::vector<Sample> wave;
  std::vector<float> expected;

  int64_t clips() const { return int64_t(wave_offsets.size()) - 1; }

  std::vector<int64_t> patch_offsets() const {
    std::vector<int64_t> offsets{0};
    for (int64_t clip = 0; clip < clips(); ++clip)
      offsets.push_back(offsets.back() + (frame_offsets[clip + 1] - frame_offsets[clip]) / kPatchSide * kColumnPatches);
    return offsets;
  }
};

double to_double(float sample) { return sample; }
double to_double(int16_t sample) { return sample / 32768.0; }

double mel(double hertz) { return 1127.0 * std::log1p(hertz / 700.0); }

double triangle(int bin, int band) {
  const double position = mel(bin * 8000.0 / 256) / mel(8000.0) * 129;
  return std::max(0.0, std::min(position - band, band + 2 - position));
}

// A frame by definition: 400 samples under a periodic Hann window, a discrete Fourier transform of 512, triangles, log.
template <class Sample>
void append_frame(const Sample* samples, int64_t count, std::vector<float>& out) {
  static const std::vector<std::complex<double>> roots = [] {
    std::vector<std::complex<double>> made(512);
    for (int k = 0; k < 512; ++k) made[k] = std::polar(1.0, -2 * M_PI * k / 512);
    return made;
  }();
  std::vector<double> magnitude(257);
  for (int bin = 0; bin <= 256; ++bin) {
    std::complex<double> sum = 0;
    for (int k = 0; k < std::min<int64_t>(count, 400); ++k)
      sum += to_double(samples[k]) * (0.5 - 0.5 * std::cos(2 * M_PI * k / 400)) * roots[k * bin % 512];
    magnitude[bin] = std::abs(sum);
  }
  for (int band = 0; band < 128; ++band) {
    double sum = 0;
    for (int bin = 1; bin < 257; ++bin) sum += magnitude[bin] * triangle(bin, band);
    out.push_back(float(0.2 * std::log(sum + 1e-5) + 0.9));
  }
}

template <class Sample>
Batch<Sample> make_batch() {
  Batch<Sample> batch;
  std::mt19937 generator(0);
  std::normal_distribution<float> noise(0.0f, 0.1f);
  for (const int64_t length : kLengths) {
    for (int64_t i = 0; i < length; ++i)
      batch.wave.push_back(std::is_same_v<Sample, float> ? Sample(noise(generator)) : Sample(32767 * noise(generator)));
    batch.wave_offsets.push_back(batch.wave_offsets.back() + length);
    batch.frame_offsets.push_back(batch.frame_offsets.back() + (length + 159) / 160);
    const int64_t begin = batch.wave_offsets.end()[-2];
    for (int64_t start = 0; start < length; start += 160)
      append_frame(batch.wave.data() + begin + start, length - start, batch.expected);
  }
  return batch;
}

template <class Sample, class Compute>
bool check(const std::string& name, const Batch<Sample>& batch, const Compute& compute) {
  // Of exactly the size that is written, and not a number where it is not.
  const std::unique_ptr<float[]> out(new float[batch.expected.size()]);
  std::fill_n(out.get(), batch.expected.size(), NAN);
  compute(out.get());
  double error = 0;
  for (size_t i = 0; i < batch.expected.size(); ++i) {
    const double difference = std::abs(double(out[i]) - batch.expected[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  std::printf("%s: error %.2g\n", name.c_str(), error);
  return error < kBudget;
}

// Where patches go: `rows` of a batch's patches, of which those in [0, count) are wanted.
struct Wanted {
  const char* name;
  std::vector<int32_t> rows;
  int64_t count;
};

std::vector<Wanted> all_wanted(int32_t patches) {
  std::vector<int32_t> shuffled(patches), columns(patches, -1);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
  std::vector<int32_t> some = shuffled;  // rows on both sides of what there is
  for (int32_t& row : some) row -= patches / 2;
  int32_t row = 0;
  for (int32_t column = patches / kColumnPatches - 1; column >= 0; column -= 2)  // every other one, from the last on
    for (int32_t patch = 0; patch < kColumnPatches; ++patch) columns[column * kColumnPatches + patch] = row++;
  return {{"shuffled", shuffled, patches}, {"some", some, patches / 4}, {"columns", columns, row}};
}

// Patches are the frames that the same implementation computes, bit for bit, in memory of exactly the size.
template <class Sample, class Frames, class Patches>
bool check_patches(const std::string& name, const Batch<Sample>& batch, const Frames& frames, const Patches& patches) {
  std::vector<float> whole(batch.expected.size());
  frames(whole.data());
  const std::vector<int64_t> offsets = batch.patch_offsets();
  bool good = true;
  for (const Wanted& wanted : all_wanted(int32_t(offsets.back()))) {
    std::vector<float> expected(wanted.count * kPatchPixels);
    for (int64_t clip = 0; clip < batch.clips(); ++clip)
      for (int64_t patch = offsets[clip]; patch < offsets[clip + 1]; ++patch) {
        const int32_t row = wanted.rows[patch];
        if (row < 0 || row >= wanted.count) continue;
        const int64_t column = (patch - offsets[clip]) / kColumnPatches, first_band = patch % kColumnPatches * 16;
        for (int64_t pixel = 0; pixel < kPatchPixels; ++pixel) {
          const int64_t frame = batch.frame_offsets[clip] + column * 16 + pixel / 16;
          expected[row * kPatchPixels + pixel] = whole[frame * kBands + first_band + pixel % 16];
        }
      }
    const std::unique_ptr<float[]> out(new float[expected.size()]);
    std::fill_n(out.get(), expected.size(), NAN);
    patches(offsets, wanted, out.get());
    const bool same = std::memcmp(out.get(), expected.data(), expected.size() * sizeof(float)) == 0;
    std::printf("%s, %s: %s\n", name.c_str(), wanted.name, same ? "the same bits" : "OTHER BITS");
    good &= same;
  }
  return good;
}

template <class Sample>
bool check_all(const char* type) {
  const Batch<Sample> batch = make_batch<Sample>();
  const bool integer = std::is_same_v<Sample, int16_t>;
  bool good = true;

  std::vector<std::pair<std::string, ComputeFrames>> sets{{"baseline", compute_frames_baseline}};
#ifdef CACOPHONY_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back({"avx2", compute_frames_avx2});
  if (std::string(cacophony_cpu_instructions()) == "avx512") sets.push_back({"avx512", compute_frames_avx512});
#endif
  for (const auto& [name, compute] : sets)
    good &= check(name + " " + type, batch, [&, compute = compute](float* out) {
      for (int64_t clip = 0; clip < batch.clips(); ++clip) {
        const int64_t begin = batch.wave_offsets[clip], samples = batch.wave_offsets[clip + 1] - begin;
        const std::vector<Sample> alone(&batch.wave[begin], &batch.wave[begin] + samples);
        compute({alone.data(), integer, samples}, 0, (samples + 159) / 160, out + batch.frame_offsets[clip] * kBands);
      }
    });
  const auto on_threads = [&](int threads) {
    return [&, threads](float* out) {
      cacophony_log_mel_cpu(batch.wave.data(), integer, batch.wave_offsets.data(), batch.frame_offsets.data(),
                            batch.clips(), threads, out);
    };
  };
  const auto on_grid = [&](unsigned tiles) {
    return [&, tiles](float* out) {
      run_grid({unsigned(batch.clips()), tiles}, kThreads, [&] {
        log_mel_kernel(batch.wave.data(), batch.wave_offsets.data(), batch.frame_offsets.data(), out);
      });
    };
  };
  for (const int threads : {1, 3})
    good &= check(std::to_string(threads) + " threads " + type, batch, on_threads(threads));
  good &= check_patches(std::string("threads ") + type, batch, on_threads(1),
                        [&](const std::vector<int64_t>& offsets, const Wanted& wanted, float* out) {
                          cacophony_log_mel_patches_cpu(batch.wave.data(), integer, batch.wave_offsets.data(),
                                                        offsets.data(), batch.clips(), wanted.rows.data(), wanted.count,
                                                        3, out);
                        });
  for (const unsigned tiles : {3u, 1u})  // of the grid: enough for the longest clip, and so few that a block takes more
    good &= check(std::string("cuda kernel ") + type, batch, on_grid(tiles));
  good &= check_patches(std::string("cuda kernel ") + type, batch, on_grid(1),
                        [&](const std::vector<int64_t>& offsets, const Wanted& wanted, float* out) {
                          run_grid({unsigned(batch.clips()), 1}, kThreads, [&] {
                            log_mel_patches_kernel(batch.wave.data(), batch.wave_offsets.data(), offsets.data(),
                                                   wanted.rows.data(), wanted.count, out);
                          });
                        });
  return good;
}

}  // namespace

int main() {
  const bool floats = check_all<float>("float"), integers = check_all<int16_t>("int16");
  return floats && integers ? 0 : 1;
}
