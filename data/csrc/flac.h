// The C ABI that data/flac.py loads. `kFlacAbiVersion` changes with every change of a signature here.
#pragma once

#include <stdint.h>

namespace cacophony {
constexpr int kFlacAbiVersion = 1;
}

#define CACOPHONY_EXPORT extern "C" __attribute__((visibility("default")))

CACOPHONY_EXPORT int cacophony_flac_abi();

// The instruction set that is used: "avx2" or "baseline".
CACOPHONY_EXPORT const char* cacophony_flac_instructions();

// What the first 42 bytes say; bytes that do not begin with "fLaC" and a STREAMINFO of 34 bytes have zeros.
struct FlacInfo {
  int64_t samples;  // a channel; 0: not declared
  int32_t rate, channels, bits;
};
CACOPHONY_EXPORT void cacophony_flac_info(const uint8_t* data, int64_t size, FlacInfo* info);

// Decodes samples [start, start + count) of a stream with one channel of 8 or 16 bits and a declared length to int16,
// full scale 32768. Touches the frames that hold them and those that lie where it looks for the first. 0: `out` is
// written, and every frame had the right CRC-8, CRC-16, place in the stream and range of samples; else the code of
// what is wrong, and what `out` holds is of no use.
CACOPHONY_EXPORT int cacophony_flac_decode(const uint8_t* data, int64_t size, int64_t start, int64_t count,
                                           int16_t* out);

// The same for `clips` streams, one after another into `out`; returns the number of clips with a `status` other than 0.
CACOPHONY_EXPORT int64_t cacophony_flac_decode_batch(const uint8_t* const* data, const int64_t* sizes,
                                                     const int64_t* starts, const int64_t* counts, int64_t clips,
                                                     int16_t* out, int32_t* status);

// What a code means, in words.
CACOPHONY_EXPORT const char* cacophony_flac_problem(int status);
