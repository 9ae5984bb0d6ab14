#include "flac_frame.h"

#include <string.h>

#include "flac_bits.h"
#include "flac_crc.h"

namespace cacophony {
namespace {

constexpr int kStreamInfoBytes = 34, kStreamInfoEnd = 4 + 4 + kStreamInfoBytes;
constexpr int kMaxHeaderBytes = 16;
constexpr int kFixed[5][4] = {{0}, {1}, {2, -1}, {3, -3, 1}, {4, -6, 4, -1}};

// A number in 1 to 7 bytes, as UTF-8 would hold it if it went so far.
bool take_coded_number(Bits& bits, int64_t* number) {
  const auto first = static_cast<uint32_t>(bits.take(8));
  if (first < 0x80) {
    *number = first;
    return true;
  }
  int ones = 0;
  while (ones < 8 && first & 0x80u >> ones) ++ones;
  if (ones < 2 || ones > 7) return false;
  *number = first & 0x7fu >> ones;
  for (int i = 1; i < ones; ++i) {
    const auto byte = static_cast<uint32_t>(bits.take(8));
    if (byte >> 6 != 2) return false;
    *number = *number << 6 | (byte & 0x3f);
  }
  return true;
}

// Samples by the code of a frame's header; 0 for a code that says nothing.
int block_of(int code, Bits& bits) {
  if (code == 0) return 0;
  if (code == 1) return 192;
  if (code <= 5) return 576 << (code - 2);
  if (code == 6) return static_cast<int>(bits.take(8)) + 1;
  if (code == 7) return static_cast<int>(bits.take(16)) + 1;
  return 256 << (code - 8);
}

// Hz by the code of a frame's header; 0 for a code that says nothing.
int rate_of(int code, const Stream& stream, Bits& bits) {
  constexpr int kRates[12] = {0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000};
  if (code == 0) return stream.rate;
  if (code < 12) return kRates[code];
  if (code == 12) return static_cast<int>(bits.take(8)) * 1000;
  if (code == 13) return static_cast<int>(bits.take(16));
  if (code == 14) return static_cast<int>(bits.take(16)) * 10;
  return 0;
}

int64_t unfolded(uint32_t code) { return static_cast<int64_t>(code >> 1) ^ -static_cast<int64_t>(code & 1); }

// Turns a row of residuals into samples, in 64 bits and one by one: for what is rare.
Status restore_wide(Lane* lane) {
  const int64_t half = int64_t{1} << (lane->bits - 1);
  int64_t history[kMaxOrder] = {};  // a ring; sample t at t % kMaxOrder
  for (int t = 0; t < lane->block; ++t) {
    int64_t sample = unfolded(lane->row[t]);
    if (t >= lane->order) {
      int64_t sum = 0;
      for (int i = 0; i < lane->order; ++i) sum += lane->coefficients[i] * history[(t - 1 - i) % kMaxOrder];
      sample += sum >> lane->shift;
    }
    if (sample < -half || sample >= half) return kBadRange;
    history[t % kMaxOrder] = sample;
    lane->row[t] = folded(sample);
  }
  lane->order = 0;
  return kRight;
}

Status read_prediction(Bits& bits, const FlacLoops& loops, bool is_fixed, Lane* lane) {
  if (lane->order > lane->block) return kBadFrame;
  for (int t = 0; t < lane->order; ++t) lane->row[t] = folded(bits.take_signed(lane->bits));
  lane->shift = 0;
  if (is_fixed) {
    for (int i = 0; i < lane->order; ++i) lane->coefficients[i] = kFixed[lane->order][i];
  } else {
    const int precision = static_cast<int>(bits.take(4)) + 1;
    lane->shift = static_cast<int32_t>(bits.take_signed(5));
    if (precision == 16 || lane->shift < 0) return kBadFrame;
    for (int i = 0; i < lane->order; ++i) lane->coefficients[i] = static_cast<int32_t>(bits.take_signed(precision));
  }
  if (!loops.residuals(bits.data, bits.size, &bits.at, lane->order, lane->block, lane->row)) return kBadFrame;
  int64_t sum = 0;
  for (int i = 0; i < lane->order; ++i)
    sum += lane->coefficients[i] < 0 ? -lane->coefficients[i] : lane->coefficients[i];
  return lane->order > kMaxNarrowOrder || sum > kMaxNarrowSum ? restore_wide(lane) : kRight;
}

}  // namespace

bool read_stream_info(const uint8_t* data, uint64_t size, Stream* stream) {
  if (size < kStreamInfoEnd || memcmp(data, "fLaC", 4) != 0) return false;
  Bits bits{data, size, 32};
  if ((bits.take(8) & 0x7f) != 0 || bits.take(24) != kStreamInfoBytes) return false;
  stream->data = data;
  stream->size = size;
  stream->min_block = static_cast<int32_t>(bits.take(16));
  stream->max_block = static_cast<int32_t>(bits.take(16));
  bits.at += 2 * 24;  // sizes of frames, which are often not known when they are written
  stream->rate = static_cast<int32_t>(bits.take(20));
  stream->channels = static_cast<int32_t>(bits.take(3)) + 1;
  stream->bits = static_cast<int32_t>(bits.take(5)) + 1;
  stream->samples = static_cast<int64_t>(bits.take(36));
  return true;
}

Status skip_metadata(Stream* stream) {
  Bits bits{stream->data, stream->size, 32};
  for (bool last = false; !last;) {
    last = bits.take(1);
    if (bits.take(7) == 127) return kNoFrame;
    const uint64_t length = bits.take(24);
    bits.at += 8 * length;
    if (bits.at > bits.end()) return kEndsEarly;
  }
  stream->first_frame = bits.at / 8;
  return kRight;
}

bool read_frame_header(const Stream& stream, uint64_t byte, FrameHeader* header) {
  Bits bits{stream.data, stream.size, 8 * byte};
  if (bits.take(15) != 0x7ffc) return false;
  header->by_sample = bits.take(1);
  const int block_code = static_cast<int>(bits.take(4)), rate_code = static_cast<int>(bits.take(4));
  const int channels_code = static_cast<int>(bits.take(4)), bits_code = static_cast<int>(bits.take(3));
  constexpr int kSampleBits[8] = {0, 8, 12, 0, 16, 20, 24, 32};
  if (channels_code != 0 || bits.take(1) != 0 || bits_code == 3) return false;
  if (bits_code != 0 && kSampleBits[bits_code] != stream.bits) return false;
  if (!take_coded_number(bits, &header->number)) return false;
  header->block = block_of(block_code, bits);
  if (header->block == 0 || header->block > kMaxBlock || rate_of(rate_code, stream, bits) != stream.rate) return false;
  const uint64_t end = bits.at / 8 + 1;
  if (end > stream.size) return false;
  header->bytes = static_cast<int>(end - byte);
  static_assert(4 + 7 + 2 + 2 + 1 <= kMaxHeaderBytes, "the longest header");
  return crc8_of(stream.data + byte, header->bytes) == 0;
}

Status read_subframe(const Stream& stream, const FlacLoops& loops, uint64_t* at, Lane* lane) {
  Bits bits{stream.data, stream.size, *at};
  if (bits.take(1) != 0) return kBadFrame;
  const int type = static_cast<int>(bits.take(6));
  uint64_t wasted = bits.take(1);
  if (wasted) {
    if (!bits.take_unary(static_cast<uint64_t>(stream.bits), &wasted)) return kBadFrame;
    ++wasted;
  }
  if (wasted >= static_cast<uint64_t>(stream.bits)) return kBadFrame;
  lane->bits = stream.bits - static_cast<int32_t>(wasted);
  lane->scale = 16 - lane->bits;
  lane->order = 0;
  Status status = kRight;
  if (type == 0) {
    const uint32_t code = folded(bits.take_signed(lane->bits));
    for (int t = 0; t < lane->block; ++t) lane->row[t] = code;
  } else if (type == 1) {
    for (int t = 0; t < lane->block; ++t) lane->row[t] = folded(bits.take_signed(lane->bits));
  } else if (type >= 8 && type <= 12) {
    lane->order = type - 8;
    status = read_prediction(bits, loops, true, lane);
  } else if (type >= 32) {
    lane->order = type - 31;
    status = read_prediction(bits, loops, false, lane);
  } else {
    return kBadFrame;
  }
  *at = bits.at;
  return bits.at > bits.end() ? kEndsEarly : status;
}

}  // namespace cacophony
