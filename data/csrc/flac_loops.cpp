// The loops of flac_loops.h. CACOPHONY_LANES and CACOPHONY_FLAC_LOOPS (the name of what is defined) come from CMake
// with the instruction set. Nothing here may be shared with a file compiled for another one: a function that the linker
// takes from here for a baseline caller would end an older processor's process. So all but the loops is local or
// inlined, and no header of the C++ library is included.
#include "flac_loops.h"

#include <stdint.h>
#include <string.h>

#ifdef __LZCNT__
#include <immintrin.h>
#endif

#include "flac_bits.h"
#include "flac_crc.h"

namespace cacophony {
namespace {

constexpr int kLanes = CACOPHONY_LANES;
static_assert(kMaxLanes % kLanes == 0, "a row is readable up to a multiple of kMaxLanes");

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef Words UnalignedWords __attribute__((aligned(4), may_alias));
typedef Shorts UnalignedShorts __attribute__((aligned(2), may_alias));

// ---- residuals ----

inline int leading_zeros(uint64_t word) {
#ifdef __LZCNT__
  return static_cast<int>(_lzcnt_u64(word));
#else
  return __builtin_clzll(word | 1);  // where that is wrong, nobody believes it: fewer than 63 bits are there
#endif
}

// So many codes of a parameter fit the 56 bits that a refill gives, nearly always.
constexpr int codes_per_refill(int parameter) {
  return parameter <= 4 ? 8 : parameter <= 6 ? 6 : parameter <= 8 ? 5 : parameter <= 10 ? 4 : parameter <= 14 ? 3 : 2;
}
constexpr int kMaxFastParameter = 20;  // above, two codes might not fit 32 bits, or the refill

// Decodes as many of `count` codes as it can `kCodes` at a time, far enough from the end of the data; returns how many.
template <int kCodes>
int fast_codes(Bits& bits, int parameter, int count, uint32_t* out) {
  const int above = 63 - parameter, fixed = kCodes * (parameter + 1);
  const uint64_t last_load = bits.size - 8;
  uint64_t next = bits.at >> 3;
  uint64_t word = load_big_endian(bits.data + next) << (bits.at & 7);  // the next `there` bits; behind them, anything
  int there = 56 - static_cast<int>(bits.at & 7), done = 0;
  next += 7;
  while (done + kCodes <= count && next <= last_load) {
    word |= load_big_endian(bits.data + next) >> there;
    next += static_cast<uint64_t>(63 - there) >> 3;
    there |= 56;
    const uint64_t before = word;
    int used = fixed;
#pragma GCC unroll 8
    for (int i = 0; i < kCodes; ++i) {
      const int zeros = leading_zeros(word);
      word <<= zeros & 63;
      // A one and the `parameter` bits behind it.
      const uint32_t tail = static_cast<uint32_t>(word >> above);
      out[done + i] = (static_cast<uint32_t>(zeros - 1) << parameter) + tail;
      word = word << parameter << 1;
      used += zeros;
    }
    if (__builtin_expect(used > there, 0)) {  // some of them reach behind what was there: none counts
      word = before;
      break;
    }
    there -= used;
    done += kCodes;
  }
  bits.at = 8 * next - static_cast<uint64_t>(there);
  return done;
}

int fast_codes(Bits& bits, int parameter, int count, uint32_t* out) {
  switch (codes_per_refill(parameter)) {
    case 8: return fast_codes<8>(bits, parameter, count, out);
    case 6: return fast_codes<6>(bits, parameter, count, out);
    case 5: return fast_codes<5>(bits, parameter, count, out);
    case 4: return fast_codes<4>(bits, parameter, count, out);
    case 3: return fast_codes<3>(bits, parameter, count, out);
    default: return fast_codes<2>(bits, parameter, count, out);
  }
}

bool rice_codes(Bits& bits, int parameter, int count, uint32_t* out) {
  const uint64_t most = UINT32_MAX >> parameter;
  for (int done = 0; done < count; ++done) {
    if (parameter <= kMaxFastParameter && bits.size >= 16 && bits.at >> 3 <= bits.size - 16)
      done += fast_codes(bits, parameter, count - done, out + done);
    if (done == count) break;
    uint64_t zeros;
    if (!bits.take_unary(most, &zeros)) return false;
    const uint64_t low = parameter ? bits.take(parameter) : 0;
    out[done] = static_cast<uint32_t>(zeros << parameter | low);
  }
  return bits.at <= bits.end();
}

bool residuals(const uint8_t* data, uint64_t size, uint64_t* at, int order, int block, uint32_t* row) {
  Bits bits{data, size, *at};
  const int method = static_cast<int>(bits.take(2));
  if (method > 1) return false;
  const int parameter_bits = 4 + method, escape = (1 << parameter_bits) - 1;
  const int partitions = 1 << bits.take(4), length = block / partitions;
  if (length * partitions != block || length < order) return false;
  int done = order;
  for (int partition = 1; partition <= partitions; ++partition) {
    const int parameter = static_cast<int>(bits.take(parameter_bits)), count = partition * length - done;
    if (parameter != escape) {
      if (!rice_codes(bits, parameter, count, row + done)) return false;
    } else if (const int width = static_cast<int>(bits.take(5))) {
      for (int i = 0; i < count; ++i) row[done + i] = folded(bits.take_signed(width));
    } else {
      memset(row + done, 0, 4 * static_cast<size_t>(count));
    }
    done += count;
    if (bits.at > bits.end()) return false;
  }
  *at = bits.at;
  return true;
}

// ---- samples ----

#ifdef __clang__
template <int... kIndex>
inline Ints zip(Ints a, Ints b) {
  return __builtin_shufflevector(a, b, kIndex...);
}
#define CACOPHONY_ZIP(a, b, ...) zip<__VA_ARGS__>(a, b)
#else
#define CACOPHONY_ZIP(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// The elements of the first, or of the second halves of two vectors, in turns.
inline Ints zip_low(Ints a, Ints b) {
#if CACOPHONY_LANES == 8
  return CACOPHONY_ZIP(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return CACOPHONY_ZIP(a, b, 0, 4, 1, 5);
#endif
}

inline Ints zip_high(Ints a, Ints b) {
#if CACOPHONY_LANES == 8
  return CACOPHONY_ZIP(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return CACOPHONY_ZIP(a, b, 2, 6, 3, 7);
#endif
}

// Element j of vector i becomes element i of vector j.
inline void transpose(Ints (&x)[kLanes]) {
  for (int stride = 1; stride < kLanes; stride *= 2) {
    Ints y[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      y[2 * i] = zip_low(x[i], x[i + kLanes / 2]);
      y[2 * i + 1] = zip_high(x[i], x[i + kLanes / 2]);
    }
    memcpy(x, y, sizeof x);
  }
}

// The frames of `restore`, a lane each, and where their samples go.
struct Group {
  const Lane* frames;
  int count;
  int64_t start, stop;
  int16_t* out;
  Ints order{}, block{}, shift{}, scale{}, half{}, bits{}, wrong{};
  Ints coefficients[kMaxNarrowOrder] = {};

  Group(const Lane* lanes, int lane_count, int64_t from, int64_t to, int16_t* samples)
      : frames(lanes), count(lane_count), start(from), stop(to), out(samples) {
    for (int lane = 0; lane < count; ++lane) {
      const Lane& frame = frames[lane];
      order[lane] = frame.order;
      block[lane] = frame.block;
      shift[lane] = frame.shift;
      scale[lane] = frame.scale;
      bits[lane] = frame.bits;
      half[lane] = 1 << (frame.bits - 1);
      for (int i = 0; i < frame.order; ++i) coefficients[i][lane] = frame.coefficients[i];
    }
  }

  // kLanes steps of all lanes from step `t` on. `history` holds the kOrder samples before, the last one at its end;
  // kEdge: some lanes are among their first samples, or behind their last.
  template <int kOrder, bool kEdge>
  void steps(int t, Ints (&history)[kOrder + kLanes]) {
    Ints tile[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t* row = frames[lane < count ? lane : 0].row + t;
      const Words code = *reinterpret_cast<const UnalignedWords*>(row);
      tile[lane] = (Ints)((code >> 1) ^ -(code & 1));
    }
    transpose(tile);
    for (int step = 0; step < kLanes; ++step) {
      // In words, whose overflow is defined: only a stream that is refused for it has any.
      Words sum{};
#pragma GCC unroll 16
      for (int i = kOrder - 1; i >= 0; --i)
        sum += (Words)coefficients[i] * (Words)history[kOrder + step - 1 - i];
      Ints prediction = (Ints)sum >> shift;
      if (kEdge) prediction &= order <= t + step;
      const Ints sample = (Ints)((Words)prediction + (Words)tile[step]);
      Ints outside = (Ints)(((Words)sample + (Words)half) >> (Words)bits);
      if (kEdge) outside &= block > t + step;
      wrong |= outside;
      history[kOrder + step] = sample;
      tile[step] = (Ints)((Words)sample << (Words)scale);
    }
    for (int i = 0; i < kOrder; ++i) history[i] = history[kLanes + i];
    transpose(tile);
    for (int lane = 0; lane < count; ++lane) store(frames[lane], t, tile[lane]);
  }

  void store(const Lane& frame, int t, Ints samples) {
    const Shorts narrow = __builtin_convertvector(samples, Shorts);
    const int64_t first = frame.position + t, end = frame.position + frame.block;
    if (first >= start && first + kLanes <= (end < stop ? end : stop)) {
      *reinterpret_cast<UnalignedShorts*>(out + (first - start)) = narrow;
      return;
    }
    for (int i = 0; i < kLanes; ++i)
      if (first + i >= start && first + i < end && first + i < stop) out[first + i - start] = narrow[i];
  }

  template <int kOrder>
  bool restore() {
    int longest = 0, shortest = kMaxBlock, highest = 0;
    for (int lane = 0; lane < count; ++lane) {
      const Lane& frame = frames[lane];
      if (frame.block > longest) longest = frame.block;
      if (frame.block < shortest) shortest = frame.block;
      if (frame.order > highest) highest = frame.order;
    }
    Ints history[kOrder + kLanes] = {};
    for (int t = 0; t < longest; t += kLanes)
      if (t < highest || t + kLanes > shortest)
        steps<kOrder, true>(t, history);
      else
        steps<kOrder, false>(t, history);
    bool right = true;
    for (int lane = 0; lane < count; ++lane) right &= wrong[lane] == 0;
    return right;
  }
};

bool restore(const Lane* frames, int count, int64_t start, int64_t stop, int16_t* out) {
  int order = 0;
  for (int lane = 0; lane < count; ++lane)
    if (frames[lane].order > order) order = frames[lane].order;
  Group group(frames, count, start, stop, out);
  if (order == 0) return group.restore<0>();
  if (order <= 2) return group.restore<2>();
  if (order <= 4) return group.restore<4>();
  if (order <= 8) return group.restore<8>();
  if (order <= 12) return group.restore<12>();
  return group.restore<kMaxNarrowOrder>();
}

}  // namespace

#define CACOPHONY_NAME_(name) #name
#define CACOPHONY_NAME(name) CACOPHONY_NAME_(name)
#define CACOPHONY_JOIN_(a, b) a##b
#define CACOPHONY_JOIN(a, b) CACOPHONY_JOIN_(a, b)

extern const FlacLoops CACOPHONY_JOIN(kFlacLoops_, CACOPHONY_FLAC_LOOPS){
    CACOPHONY_NAME(CACOPHONY_FLAC_LOOPS), kLanes, residuals, restore, crc16_of};

}  // namespace cacophony
