// The checksums of FLAC: CRC-8 with polynomial x^8 + x^2 + x + 1, CRC-16 with x^16 + x^15 + x^2 + 1, from 0 on, most
// significant bit first (RFC 9639, section 9).
#pragma once

#include <stdint.h>

#ifdef __PCLMUL__
#include <immintrin.h>
#endif

#include "flac_bits.h"

namespace cacophony {
namespace {

// of[k][b] is the CRC-16 of byte b and k zeros behind it.
struct CrcTables {
  uint16_t of[8][256];
};

constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned crc = byte << 8;
    for (int i = 0; i < 8; ++i) crc = crc << 1 ^ (crc & 0x8000 ? 0x18005 : 0);
    tables.of[0][byte] = static_cast<uint16_t>(crc);
  }
  for (int k = 1; k < 8; ++k)
    for (int byte = 0; byte < 256; ++byte) {
      const unsigned before = tables.of[k - 1][byte];
      tables.of[k][byte] = static_cast<uint16_t>(before << 8 ^ tables.of[0][before >> 8]);
    }
  return tables;
}

constexpr CrcTables kCrcTables = make_crc_tables();

inline uint16_t crc16_by_table(const uint8_t* data, uint64_t size, uint16_t crc) {
  const auto& of = kCrcTables.of;
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t word = load_big_endian(data) ^ static_cast<uint64_t>(crc) << 48;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc = static_cast<uint16_t>(crc ^ of[k][word >> 8 * k & 255]);
  }
  for (; size > 0; ++data, --size) crc = static_cast<uint16_t>(crc << 8 ^ of[0][(crc >> 8 ^ *data) & 255]);
  return crc;
}

#ifdef __PCLMUL__

// x^n modulo the polynomial.
constexpr long long crc16_power(int n) {
  unsigned power = 1;
  for (int i = 0; i < n; ++i) power = power << 1 ^ (power & 0x8000 ? 0x18005 : 0);
  return power;
}

// Sixteen bytes as a polynomial, the first bit its highest coefficient.
inline __m128i load_polynomial(const uint8_t* from) {
  const __m128i reversed = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), reversed);
}

// `sum` times x^n plus `next`, where `powers` holds x^n and, above it, x^(n + 64).
inline __m128i fold(__m128i sum, __m128i powers, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(sum, powers, 0x00), high = _mm_clmulepi64_si128(sum, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

inline uint16_t crc16_of(const uint8_t* data, uint64_t size) {
  if (size < 64) return crc16_by_table(data, size, 0);
  constexpr long long k128 = crc16_power(128), k192 = crc16_power(192), k512 = crc16_power(512),
                      k576 = crc16_power(576);
  const __m128i by_one = _mm_set_epi64x(k192, k128), by_four = _mm_set_epi64x(k576, k512);
  __m128i a = load_polynomial(data), b = load_polynomial(data + 16);
  __m128i c = load_polynomial(data + 32), d = load_polynomial(data + 48);
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
    a = fold(a, by_four, load_polynomial(data));
    b = fold(b, by_four, load_polynomial(data + 16));
    c = fold(c, by_four, load_polynomial(data + 32));
    d = fold(d, by_four, load_polynomial(data + 48));
  }
  d = fold(fold(fold(a, by_one, b), by_one, c), by_one, d);
  for (; size >= 16; data += 16, size -= 16) d = fold(d, by_one, load_polynomial(data));
  alignas(16) uint8_t rest[16];
  const __m128i reversed = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm_store_si128(reinterpret_cast<__m128i*>(rest), _mm_shuffle_epi8(d, reversed));
  return crc16_by_table(data, size, crc16_by_table(rest, 16, 0));
}

#else

inline uint16_t crc16_of(const uint8_t* data, uint64_t size) { return crc16_by_table(data, size, 0); }

#endif

inline uint8_t crc8_of(const uint8_t* data, int size) {
  unsigned crc = 0;
  for (int at = 0; at < size; ++at) {
    crc ^= data[at];
    for (int i = 0; i < 8; ++i) crc = crc << 1 ^ (crc & 0x80 ? 0x107 : 0);
  }
  return static_cast<uint8_t>(crc);
}

}  // namespace
}  // namespace cacophony
