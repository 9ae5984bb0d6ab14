// The decoder on damaged streams, in buffers without a byte to spare: what reads or writes beside them, or computes what
// C++ does not define, is seen by a sanitizer.
//
//     flac_check LOOPS decode FILE                      writes the samples of a sound stream to stdout, int16
//     flac_check LOOPS damage SEED COUNT FILE [FILE …]  decodes COUNT damaged streams, half of them with right checksums
//
// with LOOPS of an instruction set: baseline or, where they were compiled, avx2.
// Where checksums are made right, damage gets into the loops behind them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "flac.h"
#include "flac_crc.h"
#include "flac_frame.h"

using namespace cacophony;

namespace {

using Bytes = std::vector<uint8_t>;

const FlacLoops* chosen = &kFlacLoops_baseline;

Bytes read_file(const char* path) {
  Bytes data;
  FILE* file = std::fopen(path, "rb");
  if (file == nullptr) std::exit(2);
  for (int byte; (byte = std::fgetc(file)) != EOF;) data.push_back(static_cast<uint8_t>(byte));
  std::fclose(file);
  return data;
}

int decode(const Bytes& stream, int64_t start, int64_t count, std::vector<int16_t>* out) {
  const std::unique_ptr<uint8_t[]> data(new uint8_t[stream.size()]);
  const std::unique_ptr<int16_t[]> samples(new int16_t[static_cast<size_t>(count)]);
  if (!stream.empty()) std::memcpy(data.get(), stream.data(), stream.size());
  const int status =
      cacophony_flac_decode(data.get(), static_cast<int64_t>(stream.size()), start, count, samples.get());
  if (status == 0) out->assign(samples.get(), samples.get() + count);
  return status;
}

// Gives the checksums of all frames that can be read the values that belong there.
void repair(Bytes* bytes) {
  Stream stream;
  if (!read_stream_info(bytes->data(), bytes->size(), &stream) || skip_metadata(&stream)) return;
  std::vector<uint32_t> row(kMaxBlock + 2 * kMaxLanes);
  for (uint64_t byte = stream.first_frame; byte + 6 < bytes->size();) {
    FrameHeader header;
    bool found = false;
    for (uint64_t length = 6; !found && length <= 16 && byte + length <= bytes->size(); ++length) {
      uint8_t& sum = (*bytes)[byte + length - 1];
      const uint8_t before = sum;
      sum = crc8_of(bytes->data() + byte, static_cast<int>(length) - 1);
      found = read_frame_header(stream, byte, &header) && header.bytes == static_cast<int>(length);
      if (!found) sum = before;
    }
    if (!found) return;
    Lane lane;
    lane.row = row.data();
    lane.block = header.block;
    uint64_t bit = 8 * (byte + static_cast<uint64_t>(header.bytes));
    if (read_subframe(stream, *chosen, &bit, &lane)) return;
    const uint64_t end = (bit + 7) / 8;
    if (end + 2 > bytes->size()) return;
    const uint16_t sum = chosen->crc16(bytes->data() + byte, end - byte);
    (*bytes)[end] = static_cast<uint8_t>(sum >> 8);
    (*bytes)[end + 1] = static_cast<uint8_t>(sum);
    byte = end + 2;
  }
}

class Damage {
 public:
  explicit Damage(unsigned seed) : random_(seed) {}

  size_t below(size_t end) { return end ? random_() % end : 0; }

  Bytes damaged(Bytes data) {
    for (size_t count = 1 + below(4); count > 0 && !data.empty(); --count) {
      // Headers lie at the beginning: every other change is there.
      const size_t at = below(below(2) ? data.size() : std::min<size_t>(data.size(), 80));
      const size_t length = 1 + below(std::min<size_t>(data.size() - at, 40));
      const auto first = data.begin() + static_cast<ptrdiff_t>(at), last = first + static_cast<ptrdiff_t>(length);
      switch (below(7)) {
        case 0: data[at] ^= static_cast<uint8_t>(1u << below(8)); break;
        case 1: data[at] = static_cast<uint8_t>(random_()); break;
        case 2: std::fill(first, last, below(2) ? 0xff : 0x00); break;
        case 3: data.erase(first, last); break;
        case 4: data.insert(first, static_cast<size_t>(length), static_cast<uint8_t>(random_())); break;
        case 5: for (auto byte = first; byte != last; ++byte) *byte = static_cast<uint8_t>(random_()); break;
        default: if (below(4) == 0) data.resize(at);
      }
    }
    return data;
  }

 private:
  std::mt19937 random_;
};

int damage(unsigned seed, long count, const std::vector<Bytes>& streams) {
  Damage random(seed);
  long right = 0;
  for (long i = 0; i < count; ++i) {
    Bytes stream = random.damaged(streams[random.below(streams.size())]);
    if (i % 2) repair(&stream);
    const int64_t declared = cacophony_flac_samples(stream.data(), static_cast<int64_t>(stream.size()));
    const int64_t samples = std::min<int64_t>(std::max<int64_t>(declared, 0), 1 << 17);
    const auto start = static_cast<int64_t>(random.below(static_cast<size_t>(samples) + 2));
    const auto frames = static_cast<int64_t>(random.below(static_cast<size_t>(samples - start + 2)));
    std::vector<int16_t> whole, part;
    const int status = decode(stream, 0, samples, &whole);
    right += status == 0;
    if (decode(stream, start, frames, &part) == 0 && status == 0 &&
        !std::equal(part.begin(), part.end(), whole.begin() + start)) {
      std::printf("a stretch of damaged stream %ld is not that of the whole\n", i);
      return 1;
    }
  }
  std::printf("%s: %ld streams, %ld of them sound\n", cacophony_flac_instructions(), count, right);
  return 0;
}

}  // namespace

const FlacLoops& cacophony::widest_flac_loops() { return *chosen; }

int main(int count, char** words) {
  if (count < 4) return 2;
#ifdef CACOPHONY_X86
  if (std::string(words[1]) == kFlacLoops_avx2.name) chosen = &kFlacLoops_avx2;
#endif
  --count, ++words;
  const std::string what = words[1];
  if (what == "decode") {
    const Bytes stream = read_file(words[2]);
    std::vector<int16_t> samples;
    const int64_t declared = cacophony_flac_samples(stream.data(), static_cast<int64_t>(stream.size()));
    if (declared < 0 || decode(stream, 0, declared, &samples) != 0) return 1;
    return std::fwrite(samples.data(), 2, samples.size(), stdout) == samples.size() ? 0 : 1;
  }
  if (what != "damage" || count < 5) return 2;
  std::vector<Bytes> streams;
  for (int i = 4; i < count; ++i) streams.push_back(read_file(words[i]));
  return damage(static_cast<unsigned>(std::atol(words[2])), std::atol(words[3]), streams);
}
