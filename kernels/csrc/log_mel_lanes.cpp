// Frames of one clip, one a lane. CACOPHONY_LANES and CACOPHONY_COMPUTE_FRAMES (the name of the function) come from
// CMake with the instruction set. Nothing here may be shared with a file compiled for another one: a function that the
// linker takes from here for a baseline caller would end an older processor's process. So all but that function is
// local or inlined, and no header of the C++ library is included.
#include "log_mel_lanes.h"

#include "log_mel.h"

namespace cacophony {
namespace {

constexpr int kLanes = CACOPHONY_LANES;
constexpr int kSpan = (kWindow + kHop - 1) / kHop;  // hops a frame lies in
constexpr int kRowFloats = (kLanes + kSpan - 1 + 3) / 4 * 4;

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
typedef Lanes UnalignedLanes __attribute__((aligned(4), may_alias));

constexpr Tables kTables = make_tables();

}  // namespace

template <>
struct Elementary<Lanes> {
  static CACOPHONY_HD Lanes root(const Lanes& x) {
    Lanes y;
    for (int i = 0; i < kLanes; ++i) y[i] = __builtin_sqrtf(x[i]);
    return y;
  }

  static CACOPHONY_HD void split(const Lanes& x, Lanes& mantissa, Lanes& exponent) {
    const IntLanes above = (IntLanes)x - kRootHalfBits;
    exponent = __builtin_convertvector(above >> 23, Lanes);
    const IntLanes bits = (above & 0x7fffff) + kRootHalfBits;
    mantissa = (Lanes)bits;
  }

  static CACOPHONY_HD Lanes where_finite(const Lanes& x, const Lanes& y) {
    return ((x <= 3.402823466e38f) & (x >= -3.402823466e38f)) ? y : x;
  }
};

namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t IntFour __attribute__((vector_size(16)));
typedef Four UnalignedFour __attribute__((aligned(4), may_alias));
typedef int16_t UnalignedShorts __attribute__((vector_size(8), aligned(2), may_alias));

#ifdef __clang__
#define CACOPHONY_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CACOPHONY_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntFour{__VA_ARGS__})
#endif

CACOPHONY_HD void transpose(Four& a, Four& b, Four& c, Four& d) {
  const Four ac_low = CACOPHONY_SHUFFLE(a, c, 0, 4, 1, 5), ac_high = CACOPHONY_SHUFFLE(a, c, 2, 6, 3, 7);
  const Four bd_low = CACOPHONY_SHUFFLE(b, d, 0, 4, 1, 5), bd_high = CACOPHONY_SHUFFLE(b, d, 2, 6, 3, 7);
  a = CACOPHONY_SHUFFLE(ac_low, bd_low, 0, 4, 1, 5);
  b = CACOPHONY_SHUFFLE(ac_low, bd_low, 2, 6, 3, 7);
  c = CACOPHONY_SHUFFLE(ac_high, bd_high, 0, 4, 1, 5);
  d = CACOPHONY_SHUFFLE(ac_high, bd_high, 2, 6, 3, 7);
}

CACOPHONY_HD Four load(const float* from) { return *reinterpret_cast<const UnalignedFour*>(from); }
CACOPHONY_HD void store(const Four& value, float* to) { *reinterpret_cast<UnalignedFour*>(to) = value; }

CACOPHONY_HD Four load_samples(const float* from) { return load(from); }
CACOPHONY_HD Four load_samples(const int16_t* from) {
  const UnalignedShorts values = *reinterpret_cast<const UnalignedShorts*>(from);
  return __builtin_convertvector(__builtin_convertvector(values, IntFour), Four) * (1.0f / 32768.0f);
}

CACOPHONY_HD float load_sample(const float* from) { return *from; }
CACOPHONY_HD float load_sample(const int16_t* from) { return *from * (1.0f / 32768.0f); }

// The samples of all lanes' frames: row r holds samples r, 160 + r, 320 + r, ... of the first frame on. Frames overlap,
// so a sample is read and converted once, and lane i's sample k is the float i + k / 160 of row k % 160.
struct Hops {
  float row[kHop][kRowFloats];

  CACOPHONY_HD Lanes operator()(int k) const {
    return *reinterpret_cast<const UnalignedLanes*>(&row[k % kHop][k / kHop]);
  }

  template <class Sample>
  CACOPHONY_HD void fill(const Sample* samples, int64_t first, int64_t count) {
    for (int hop = 0; hop < kRowFloats; hop += 4) {
      const int64_t start = first + hop * kHop;
      if (start + 4 * kHop <= count)
        fill_four(samples + start, hop);
      else
        for (int i = 0; i < 4; ++i) fill_last(samples, start + i * kHop, count, hop + i);
    }
  }

  template <class Sample>
  CACOPHONY_HD void fill_four(const Sample* samples, int hop) {
    for (int r = 0; r < kHop; r += 4) {
      Four a = load_samples(samples + r), b = load_samples(samples + kHop + r);
      Four c = load_samples(samples + 2 * kHop + r), d = load_samples(samples + 3 * kHop + r);
      transpose(a, b, c, d);
      store(a, &row[r][hop]), store(b, &row[r + 1][hop]), store(c, &row[r + 2][hop]), store(d, &row[r + 3][hop]);
    }
  }

  template <class Sample>
  CACOPHONY_HD void fill_last(const Sample* samples, int64_t start, int64_t count, int hop) {
    const int64_t left = count - start;
    const int inside = left < 0 ? 0 : left < kHop ? static_cast<int>(left) : kHop;
    for (int r = 0; r < inside; ++r) row[r][hop] = load_sample(samples + start + r);
    for (int r = inside; r < kHop; ++r) row[r][hop] = 0.0f;
  }
};

CACOPHONY_HD Four four_lanes(const Lanes& lanes, int first) {
  return *(reinterpret_cast<const UnalignedFour*>(&lanes) + first / 4);
}

void write_rows(const Lanes (&bands)[kBands], int frames, float* out) {
  int lane = 0;
  for (; lane + 4 <= frames; lane += 4)
    for (int band = 0; band < kBands; band += 4) {
      Four a = four_lanes(bands[band], lane), b = four_lanes(bands[band + 1], lane);
      Four c = four_lanes(bands[band + 2], lane), d = four_lanes(bands[band + 3], lane);
      transpose(a, b, c, d);
      float* to = out + lane * kBands + band;
      store(a, to), store(b, to + kBands), store(c, to + 2 * kBands), store(d, to + 3 * kBands);
    }
  for (; lane < frames; ++lane)
    for (int band = 0; band < kBands; ++band) out[lane * kBands + band] = bands[band][lane];
}

void compute_lanes(const Hops& hops, int frames, float* out) {
  Scratch<Lanes> scratch;
  Lanes bands[kBands];
  for (int t = 0; t < kRadix; ++t) transform_column<Lanes>(kTables, t, hops, scratch);
  for (int t = 0; t < kRadix; ++t) transform_row<Lanes>(t, scratch);
  for (int t = 0; t < kRadix; ++t) take_magnitudes<Lanes>(kTables, t, scratch);
  for (int band = 0; band < kBands; ++band) bands[band] = mel_band<Lanes>(kTables, band, scratch);
  for (int band = 0; band < kBands; ++band) bands[band] = scaled_log<Lanes>(bands[band]);
  write_rows(bands, frames, out);
}

}  // namespace

void CACOPHONY_COMPUTE_FRAMES(const Clip& clip, int64_t first, int64_t count, float* out) {
  for (int64_t done = 0; done < count; done += kLanes) {
    const int frames = count - done < kLanes ? static_cast<int>(count - done) : kLanes;
    Hops hops;
    const int64_t start = (first + done) * kHop;
    if (clip.is_int16)
      hops.fill(static_cast<const int16_t*>(clip.samples), start, clip.count);
    else
      hops.fill(static_cast<const float*>(clip.samples), start, clip.count);
    compute_lanes(hops, frames, out + done * kBands);
  }
}

}  // namespace cacophony
