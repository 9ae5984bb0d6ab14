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

// Which streams are taken is said by their first 42 bytes: "fLaC" and a STREAMINFO of 34 bytes, which declares 16 kHz, one
// channel, 8 or 16 bits, and how many samples there are.

// The samples that such a stream declares; -1 for all others, and where so few bytes cannot hold so many.
CACOPHONY_EXPORT int64_t cacophony_flac_samples(const uint8_t* data, int64_t size);

// Decodes samples [start, start + count) of such a stream to int16, full scale 32768. Touches the frames that hold them
// and those that lie where it looks for the first. 0: `out` is written, and every frame had the right CRC-8, CRC-16,
// place in the stream and range of samples; else the code of what is wrong, and what `out` holds is of no use.
CACOPHONY_EXPORT int cacophony_flac_decode(const uint8_t* data, int64_t size, int64_t start, int64_t count,
                                           int16_t* out);

// The same for `clips` streams, each to `out` + its place, and its code to `status`.
CACOPHONY_EXPORT void cacophony_flac_decode_many(const uint8_t* const* data, const int64_t* sizes,
                                                 const int64_t* starts, const int64_t* counts, const int64_t* places,
                                                 int64_t clips, int16_t* out, int32_t* status);

// What a code means, in words.
CACOPHONY_EXPORT const char* cacophony_flac_problem(int status);
