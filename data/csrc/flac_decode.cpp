// Decoding a stretch of a stream: frames one after another, their samples as many frames at a time as there are lanes.
#include <stddef.h>
#include <string.h>

#include <new>
#include <vector>

#include "flac.h"
#include "flac_frame.h"
#include "flac_loops.h"

namespace cacophony {
namespace {

const FlacLoops& loops() {
  static const FlacLoops& chosen = widest_flac_loops();
  return chosen;
}

constexpr int32_t kRate = 16000;
// Fewer bytes hold no frame, and no block is longer: what a length in a header is measured by.
constexpr int64_t kMinFrameBytes = 10;
// Of a search by halves, after which it is no search any more.
constexpr int kMaxProbes = 64;

// A frame's place.
struct Place {
  uint64_t byte;
  int64_t sample;
};

// The frames whose samples are to be restored together, in memory that a thread keeps from call to call: 2 MB at most.
class Rows {
 public:
  // The lane to read the next frame into. There has to be one: `full` for a frame of so many samples is false.
  Lane* next(int32_t block) {
    const size_t wanted = (static_cast<size_t>(block) + 2 * kMaxLanes - 1) / kMaxLanes * kMaxLanes;
    if (wanted > stride_) {  // a multiple of a page would put all rows into the same few lines of the cache
      words_.assign(static_cast<size_t>(loops().lanes) * wanted, 0);
      stride_ = wanted;
    }
    Lane* lane = &lanes_[count_];
    lane->row = words_.data() + static_cast<size_t>(count_) * stride_;
    lane->block = block;
    return lane;
  }
  void keep() { ++count_; }
  void clear() { count_ = 0; }
  bool full(int32_t block) const {
    return count_ == loops().lanes || (count_ > 0 && static_cast<size_t>(block) + kMaxLanes > stride_);
  }
  const Lane* lanes() const { return lanes_; }
  int count() const { return count_; }

 private:
  std::vector<uint32_t> words_;
  size_t stride_ = 0;
  Lane lanes_[kMaxLanes];
  int count_ = 0;
};

class Decoder {
 public:
  Decoder(const Stream& stream, Rows* rows) : stream_(stream), rows_(*rows) {}

  Status decode(int64_t start, int64_t stop, int16_t* out) {
    if (const Status status = skip_metadata(&stream_)) return status;
    FrameHeader first;
    if (!read_frame_header(stream_, stream_.first_frame, &first)) return kNoFrame;
    by_sample_ = first.by_sample;
    const Place beginning{stream_.first_frame, 0}, found = find(start);
    const Status status = decode_from(found, start, stop, out);
    // What was found need not be a frame: if it is none, only those before it can tell where there is one.
    return status && found.byte != beginning.byte ? decode_from(beginning, start, stop, out) : status;
  }

 private:
  int64_t first_sample(const FrameHeader& header) const {
    return header.by_sample ? header.number : header.number * stream_.max_block;
  }

  // A place no later than the frame that holds `sample`, by halving: near it, where headers are what they seem.
  Place find(int64_t sample) const {
    Place low{stream_.first_frame, 0}, high{stream_.size, stream_.samples};
    const int64_t block = stream_.max_block;
    // Few frames are decoded as quickly as they are searched.
    for (int probe = 0; probe < kMaxProbes && sample - low.sample >= 2 * block && low.byte + 1 < high.byte; ++probe) {
      // Where it would be if all samples took equally many bytes, and half a frame before; or, as that can be wrong
      // again and again, in the middle.
      const double share = probe % 4 == 3 ? 0.5
                                          : static_cast<double>(sample - block / 2 - low.sample) /
                                                static_cast<double>(high.sample - low.sample);
      const uint64_t from = low.byte + 1 + static_cast<uint64_t>(share * static_cast<double>(high.byte - low.byte - 1));
      Place found;
      if (from >= high.byte || !next_frame(from, low, high, &found)) {
        high.byte = from;  // the samples before `high.sample` lie before it still
      } else if (found.sample <= sample) {
        low = found;
      } else {
        high = {from, found.sample};
      }
    }
    return low;
  }

  // The first header from a byte on that belongs between two others.
  bool next_frame(uint64_t from, const Place& low, const Place& high, Place* found) const {
    for (uint64_t byte = from; byte < high.byte; ++byte) {
      const void* sync = memchr(stream_.data + byte, 0xff, high.byte - byte);
      if (sync == nullptr) return false;
      byte = static_cast<uint64_t>(static_cast<const uint8_t*>(sync) - stream_.data);
      FrameHeader header;
      if (!read_frame_header(stream_, byte, &header) || header.by_sample != by_sample_) continue;
      found->byte = byte;
      found->sample = first_sample(header);
      if (found->sample > low.sample && found->sample < high.sample) return true;
    }
    return false;
  }

  Status decode_from(Place at, int64_t start, int64_t stop, int16_t* out) {
    rows_.clear();
    while (at.sample < stop)
      if (const Status status = decode_frame(&at, start, stop, out)) return status;
    if (const Status status = restore(start, stop, out)) return status;
    FrameHeader more;
    return stop == stream_.samples && read_frame_header(stream_, at.byte, &more) ? kEndsLate : kRight;
  }

  Status decode_frame(Place* at, int64_t start, int64_t stop, int16_t* out) {
    FrameHeader header;
    if (at->byte >= stream_.size) return kEndsEarly;
    if (!read_frame_header(stream_, at->byte, &header)) return kNoFrame;
    if (header.by_sample != by_sample_ || first_sample(header) != at->sample) return kBadOrder;
    if (header.block > stream_.samples - at->sample) return kEndsLate;
    const bool is_last = header.block == stream_.samples - at->sample;
    const int shortest = is_last ? 1 : by_sample_ ? stream_.min_block : stream_.max_block;
    if (header.block < shortest || header.block > stream_.max_block) return kBadBlock;
    if (rows_.full(header.block))
      if (const Status status = restore(start, stop, out)) return status;
    Lane* lane = rows_.next(header.block);
    lane->position = at->sample;
    uint64_t bit = 8 * (at->byte + static_cast<uint64_t>(header.bytes));
    if (const Status status = read_subframe(stream_, loops(), &bit, lane)) return status;
    const uint64_t end = (bit + 7) / 8;
    if (end + 2 > stream_.size) return kEndsEarly;
    const unsigned stored = static_cast<unsigned>(stream_.data[end] << 8 | stream_.data[end + 1]);
    if (loops().crc16(stream_.data + at->byte, end - at->byte) != stored) return kBadCrc;
    at->byte = end + 2;
    at->sample += header.block;
    if (at->sample > start) rows_.keep();
    return kRight;
  }

  Status restore(int64_t start, int64_t stop, int16_t* out) {
    const bool right = rows_.count() == 0 || loops().restore(rows_.lanes(), rows_.count(), start, stop, out);
    rows_.clear();
    return right ? kRight : kBadRange;
  }

  Stream stream_;
  Rows& rows_;
  bool by_sample_ = false;
};

bool open_stream(const uint8_t* data, int64_t size, Stream* stream) {
  return read_stream_info(data, static_cast<uint64_t>(size), stream) && stream->rate == kRate &&
         stream->channels == 1 && (stream->bits == 8 || stream->bits == 16) && stream->samples > 0 &&
         stream->samples <= (size / kMinFrameBytes + 1) * kMaxBlock;
}

Status decode(const uint8_t* data, int64_t size, int64_t start, int64_t count, int16_t* out) {
  Stream stream;
  if (!open_stream(data, size, &stream)) return kNotTaken;
  if (start < 0 || count < 0 || start > stream.samples || count > stream.samples - start) return kOutside;
  thread_local Rows rows;
  return Decoder(stream, &rows).decode(start, start + count, out);
}

}  // namespace
}  // namespace cacophony

using namespace cacophony;

int cacophony_flac_abi() { return kFlacAbiVersion; }

const char* cacophony_flac_instructions() { return loops().name; }

int64_t cacophony_flac_samples(const uint8_t* data, int64_t size) {
  Stream stream;
  return open_stream(data, size, &stream) ? stream.samples : -1;
}

int cacophony_flac_decode(const uint8_t* data, int64_t size, int64_t start, int64_t count, int16_t* out) try {
  return decode(data, size, start, count, out);
} catch (const std::bad_alloc&) {
  return kNoMemory;
}

void cacophony_flac_decode_many(const uint8_t* const* data, const int64_t* sizes, const int64_t* starts,
                                const int64_t* counts, const int64_t* places, int64_t clips, int16_t* out,
                                int32_t* status) {
  for (int64_t clip = 0; clip < clips; ++clip)
    status[clip] = cacophony_flac_decode(data[clip], sizes[clip], starts[clip], counts[clip], out + places[clip]);
}

const char* cacophony_flac_problem(int status) {
  switch (status) {
    case kRight: return "nothing is wrong";
    case kNotTaken: return "not FLAC at 16 kHz with one channel, 8 or 16 bits and a declared length";
    case kOutside: return "samples asked for that are not declared";
    case kNoFrame: return "no frame where one has to be";
    case kBadCrc: return "a frame's CRC-16 is wrong";
    case kBadFrame: return "a frame that cannot be read";
    case kBadOrder: return "a frame that belongs elsewhere";
    case kBadBlock: return "a frame shorter or longer than declared";
    case kBadRange: return "a sample outside its bits";
    case kEndsEarly: return "it ends before all samples were there";
    case kEndsLate: return "it holds more samples than it declares";
    case kNoMemory: return "out of memory";
    default: return "unknown";
  }
}
