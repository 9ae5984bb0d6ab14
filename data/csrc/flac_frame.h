// A FLAC stream of one channel as it is in memory: its header, and its frames one by one (RFC 9639, sections 8 and 9).
// Nothing it says of itself is believed before it is checked.
#pragma once

#include <stdint.h>

#include "flac.h"
#include "flac_loops.h"

namespace cacophony {

enum Status : int {
  kRight = 0,
  kNotTaken,  // no FLAC, or FLAC of another kind than flac.h says
  kOutside,         // of the stream's samples
  kNoFrame,
  kBadCrc,
  kBadFrame,
  kBadOrder,
  kBadBlock,
  kBadRange,
  kEndsEarly,
  kEndsLate,
  kNoMemory,
};

// What STREAMINFO says.
struct Stream {
  const uint8_t* data;
  uint64_t size;
  uint64_t first_frame;  // byte
  int64_t samples;
  int32_t rate, channels, bits;
  int32_t min_block, max_block;  // samples of a frame; the last may be shorter
};

// False where the data do not begin with "fLaC" and STREAMINFO; `first_frame` is not set.
bool read_stream_info(const uint8_t* data, uint64_t size, Stream* stream);

// Sets `first_frame`, behind all metadata.
Status skip_metadata(Stream* stream);

struct FrameHeader {
  int bytes;
  int32_t block;     // samples
  bool by_sample;    // `number` counts samples, not frames
  int64_t number;
};

// The header at `byte`, if there is one that has the right CRC-8 and fits the stream.
bool read_frame_header(const Stream& stream, uint64_t byte, FrameHeader* header);

// Reads the only subframe of a frame, from the bit `*at` to its end, into `lane`, whose `row` and `block` are set:
// either to be restored from residuals, or restored already, where `restore` does not take it.
Status read_subframe(const Stream& stream, const FlacLoops& loops, uint64_t* at, Lane* lane);

}  // namespace cacophony
