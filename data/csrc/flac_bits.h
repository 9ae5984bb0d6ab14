// Reading bits, most significant first, and nothing outside of `size` bytes: what lies behind them reads as zeros, and
// whoever reads compares `at` with `end()` before he believes what he read.
#pragma once

#include <stdint.h>
#include <string.h>

namespace cacophony {
namespace {

inline uint64_t load_big_endian(const uint8_t* from) {
  uint64_t word;
  memcpy(&word, from, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

// Small numbers of either sign as small numbers without: 2 x, or -2 x - 1 where x < 0. This is how Rice codes hold them.
inline uint32_t folded(int64_t value) {
  return static_cast<uint32_t>(static_cast<uint64_t>(value) << 1 ^ static_cast<uint64_t>(value >> 63));
}

struct Bits {
  const uint8_t* data;
  uint64_t size;  // bytes
  uint64_t at;    // bits

  uint64_t end() const { return 8 * size; }

  // The next 57 bits at least, from the most significant one on.
  uint64_t peek() const {
    const uint64_t byte = at >> 3;
    if (size >= 8 && byte <= size - 8) return load_big_endian(data + byte) << (at & 7);
    uint64_t word = 0;
    for (uint64_t i = 0; i < 8; ++i) word = word << 8 | (byte + i < size ? data[byte + i] : 0);
    return word << (at & 7);
  }

  // 1 to 57 bits.
  uint64_t take(int count) {
    const uint64_t value = peek() >> (64 - count);
    at += static_cast<uint64_t>(count);
    return value;
  }

  // The same as a number in two's complement.
  int64_t take_signed(int count) {
    const int64_t value = static_cast<int64_t>(peek()) >> (64 - count);
    at += static_cast<uint64_t>(count);
    return value;
  }

  // Zeros before a one, which is taken too; false where the data end before it, or there are more than `most`.
  bool take_unary(uint64_t most, uint64_t* zeros) {
    for (*zeros = 0; *zeros <= most && at < end();) {
      const uint64_t word = peek();
      if (word >> 7) {  // a one among the 57 bits that are there
        const int run = __builtin_clzll(word);
        *zeros += static_cast<uint64_t>(run);
        at += static_cast<uint64_t>(run) + 1;
        return *zeros <= most && at <= end();
      }
      *zeros += 57;
      at += 57;
    }
    return false;
  }
};

}  // namespace
}  // namespace cacophony
