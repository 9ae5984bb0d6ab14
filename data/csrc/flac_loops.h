// What is compiled once for each instruction set: the loops over residuals, samples and bytes of a frame.
#pragma once

#include <stdint.h>

namespace cacophony {

constexpr int kMaxOrder = 32;
constexpr int kMaxLanes = 8;
constexpr int kMaxBlock = 65535;

// A frame between its residuals and its samples. The first `order` values of `row` are samples, the others residuals of
// the prediction (sum of coefficients[i] times the sample i + 1 before) >> shift; all as 2 x where x >= 0, else -2 x - 1.
struct Lane {
  uint32_t* row;         // readable kMaxLanes words behind the longest block that is restored with it
  int32_t block;         // samples
  int32_t order;
  int32_t shift;
  int32_t bits;          // of a sample
  int32_t scale;         // a sample is written shifted left by so much, 16 - bits at most
  int64_t position;      // in the stream, of the first sample
  int32_t coefficients[kMaxOrder];
};

// The largest sum of absolute coefficients with which a prediction from 16-bit samples is right in 32 bits, and can be
// added to a residual of 32 bits without coming back to 16.
constexpr int64_t kMaxNarrowSum = 65534;
// The highest order that `restore` takes.
constexpr int kMaxNarrowOrder = 16;

struct FlacLoops {
  const char* name;
  int lanes;
  // Reads the residuals of a subframe from the bit `*at` on into `row`, behind its `order` samples. False where they
  // reach beyond the data or do not fit 32 bits.
  bool (*residuals)(const uint8_t* data, uint64_t size, uint64_t* at, int order, int block, uint32_t* row);
  // Samples [start, stop) of the stream, as far as they lie in these `count` <= `lanes` frames, to `out`, which begins
  // with the sample `start`. False where a sample does not fit its bits.
  bool (*restore)(const Lane* frames, int count, int64_t start, int64_t stop, int16_t* out);
  uint16_t (*crc16)(const uint8_t* data, uint64_t size);
};

extern const FlacLoops kFlacLoops_baseline;
extern const FlacLoops kFlacLoops_avx2;

// Those of the widest instruction set that the processor has.
const FlacLoops& widest_flac_loops();

}  // namespace cacophony
