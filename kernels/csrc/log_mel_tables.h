// The front-end's constants, computed in double by the compiler: nothing is initialised when a library is loaded, and
// the host and every GPU have their own copy.
#pragma once

namespace cacophony {

constexpr int kWindow = 400;  // samples of a frame
constexpr int kHop = 160;     // samples from one frame to the next
constexpr int kFftSize = 512;
constexpr int kBands = 128;
constexpr double kNyquist = 8000.0;  // Hz

// A patch is as many frames as bands; a column is the patches that lie in the same frames.
constexpr int kPatchSide = 16;
constexpr int kPatchPixels = kPatchSide * kPatchSide;  // in memory frame after frame
constexpr int kColumnPatches = kBands / kPatchSide;

// A real transform of 512 samples is a complex one of 256, and that is 16 transforms of 16, twice.
constexpr int kRadix = 16;
constexpr int kHalf = kFftSize / 2;

namespace exact {

constexpr double kPi = 3.14159265358979323846;

constexpr double sine_series(double x) {  // |x| <= pi / 4
  double term = x, sum = x;
  for (int n = 1; n < 12; ++n) sum += term *= -x * x / ((2 * n) * (2 * n + 1));
  return sum;
}

constexpr double cosine_series(double x) {  // |x| <= pi / 4
  double term = 1.0, sum = 1.0;
  for (int n = 1; n < 12; ++n) sum += term *= -x * x / ((2 * n - 1) * (2 * n));
  return sum;
}

// cos(2 pi turns / whole): the angle is brought into an eighth of a turn by integers, so it is exact there.
constexpr double cosine(int turns, int whole) {
  turns = (turns % whole + whole) % whole;
  if (2 * turns > whole) turns = whole - turns;
  if (4 * turns > whole) return -cosine(whole - 2 * turns, 2 * whole);
  if (8 * turns > whole) return sine_series(2.0 * kPi * (whole - 4 * turns) / (4.0 * whole));
  return cosine_series(2.0 * kPi * turns / whole);
}

constexpr double sine(int turns, int whole) { return cosine(4 * turns - whole, 4 * whole); }

constexpr double logarithm(double x) {  // x > 0
  int halvings = 0;
  for (; x > 1.5; ++halvings) x /= 2.0;
  for (; x < 0.75; --halvings) x *= 2.0;
  const double s = (x - 1.0) / (x + 1.0);
  double power = s, sum = 0.0;
  for (int n = 1; n < 40; n += 2, power *= s * s) sum += power / n;
  return 2.0 * sum + halvings * 0.69314718055994530942;
}

constexpr double mel(double hertz) { return 1127.0 * logarithm(1.0 + hertz / 700.0); }

}  // namespace exact

struct alignas(8) Twiddle {
  float re, im;
};

struct Tables {
  float window[kWindow];              // periodic Hann, halved: the transform of packed reals is twice too large
  Twiddle inner[kRadix][kRadix];      // e^(-2 pi i k t / 256), between the two passes of the complex transform
  Twiddle outer[kHalf / 2 + 1];       // e^(-2 pi i k / 512), from the complex transform to the real one
  int first_bin[kBands];              // bins of a band that have a weight, and where their weights begin
  int bin_count[kBands];
  int first_weight[kBands];
  float weights[2 * kHalf];           // a bin lies under two triangles at most
};

// The triangles are linear in mel between 130 edges equally spaced in mel; the DC bin and the last one are in none.
constexpr Tables make_tables() {
  Tables tables{};
  for (int k = 0; k < kWindow; ++k)
    tables.window[k] = static_cast<float>(0.5 * (0.5 - 0.5 * exact::cosine(k, kWindow)));
  for (int k = 0; k < kRadix; ++k)
    for (int t = 0; t < kRadix; ++t)
      tables.inner[k][t] = {static_cast<float>(exact::cosine(k * t, kHalf)),
                            static_cast<float>(-exact::sine(k * t, kHalf))};
  for (int k = 0; k <= kHalf / 2; ++k)
    tables.outer[k] = {static_cast<float>(exact::cosine(k, kFftSize)), static_cast<float>(-exact::sine(k, kFftSize))};

  double position[kHalf]{};  // of every bin in mel, in units of the edges' spacing
  const double spacing = exact::mel(kNyquist) / (kBands + 1);
  for (int bin = 1; bin < kHalf; ++bin) position[bin] = exact::mel(bin * kNyquist / kHalf) / spacing;
  int used = 0;
  for (int band = 0; band < kBands; ++band) {
    tables.first_weight[band] = used;
    for (int bin = 1; bin < kHalf; ++bin) {
      const double rising = position[bin] - band, falling = band + 2 - position[bin];
      const double weight = rising < falling ? rising : falling;
      if (weight <= 0.0) continue;
      if (tables.bin_count[band]++ == 0) tables.first_bin[band] = bin;
      tables.weights[used++] = static_cast<float>(weight);
    }
  }
  return tables;
}

}  // namespace cacophony
