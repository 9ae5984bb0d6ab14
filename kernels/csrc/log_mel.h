// The arithmetic of log_mel, the same on a CPU and on a GPU: window, 512-point real FFT, magnitude, mel bands, log.
//
// Sixteen threads t share a frame and its `Scratch`. Between the four steps below all of them must have finished: on a
// GPU they lie in one warp, on a CPU a loop plays them in turn. T is float, or a vector of floats, one frame a lane.
#pragma once

#include <math.h>
#include <string.h>

#include "log_mel_tables.h"

#ifdef __CUDACC__
#define CACOPHONY_HD __host__ __device__ __forceinline__
#define CACOPHONY_UNROLL _Pragma("unroll")
#else
#define CACOPHONY_HD inline __attribute__((always_inline))
#ifdef __clang__
#define CACOPHONY_UNROLL _Pragma("unroll")
#else
#define CACOPHONY_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace cacophony {

constexpr int kRootHalfBits = 0x3f3504f3;  // of sqrt(1/2) as a float

// What is not an operator of T: `root` is the square root; `split` gives m and e of a normal x = m 2^e > 0, m in
// [sqrt(1/2), sqrt(2)); `where_finite` is y where x is finite, else x.
template <class T>
struct Elementary;

template <>
struct Elementary<float> {
  static CACOPHONY_HD float root(float x) { return sqrtf(x); }

  static CACOPHONY_HD void split(float x, float& mantissa, float& exponent) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    const int above = bits - kRootHalfBits;
    exponent = static_cast<float>(above >> 23);
    bits = (above & 0x7fffff) + kRootHalfBits;
    memcpy(&mantissa, &bits, sizeof bits);
  }

  static CACOPHONY_HD float where_finite(float x, float y) { return fabsf(x) <= 3.402823466e38f ? y : x; }
};

template <class T>
struct alignas(2 * sizeof(T)) Complex {  // so aligned, a GPU moves it at once
  T re, im;
};

template <class T>
CACOPHONY_HD Complex<T> operator+(const Complex<T>& a, const Complex<T>& b) {
  return {a.re + b.re, a.im + b.im};
}

template <class T>
CACOPHONY_HD Complex<T> operator-(const Complex<T>& a, const Complex<T>& b) {
  return {a.re - b.re, a.im - b.im};
}

template <class T>
CACOPHONY_HD Complex<T> operator*(const Complex<T>& a, const Twiddle& w) {
  return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}

// One frame on its way through the transform. A row has a slot to spare, so that the columns of a GPU's shared memory
// lie in different banks.
template <class T>
struct Scratch {
  Complex<T> slot[kRadix * (kRadix + 1)];

  CACOPHONY_HD Complex<T>& at(int row, int column) { return slot[row * (kRadix + 1) + column]; }
  CACOPHONY_HD Complex<T>& bin(int k) { return at(k % kRadix, k / kRadix); }
};

template <class T>
CACOPHONY_HD void fft4(Complex<T>& a, Complex<T>& b, Complex<T>& c, Complex<T>& d) {
  const Complex<T> even_sum = a + c, even_difference = a - c, odd_sum = b + d, odd_difference = b - d;
  a = even_sum + odd_sum;
  b = {even_difference.re + odd_difference.im, even_difference.im - odd_difference.re};
  c = even_sum - odd_sum;
  d = {even_difference.re - odd_difference.im, even_difference.im + odd_difference.re};
}

// Output k stands at x[4 (k % 4) + k / 4].
template <class T>
CACOPHONY_HD void fft16(Complex<T> (&x)[kRadix]) {
  constexpr float c1 = 0.92387953251128676f, s1 = 0.38268343236508977f, h = 0.70710678118654752f;
  constexpr Twiddle w1{c1, -s1}, w3{s1, -c1}, w9{-c1, s1};
  CACOPHONY_UNROLL
  for (int i = 0; i < 4; ++i) fft4(x[i], x[i + 4], x[i + 8], x[i + 12]);
  x[5] = x[5] * w1;
  x[9] = {(x[9].re + x[9].im) * h, (x[9].im - x[9].re) * h};
  x[13] = x[13] * w3;
  x[6] = {(x[6].re + x[6].im) * h, (x[6].im - x[6].re) * h};
  x[10] = {x[10].im, -x[10].re};
  x[14] = {(x[14].im - x[14].re) * h, -(x[14].re + x[14].im) * h};
  x[7] = x[7] * w3;
  x[11] = {(x[11].im - x[11].re) * h, -(x[11].re + x[11].im) * h};
  x[15] = x[15] * w9;
  CACOPHONY_UNROLL
  for (int q = 0; q < 4; ++q) fft4(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
}

// Step 1: window the samples 32 n + 2 t and 32 n + 2 t + 1, the real and imaginary parts of the packed frame, and
// transform them. `sample(k)` is asked for no k outside the frame: what lies there may be another clip's, or NaN.
template <class T, class Samples>
CACOPHONY_HD void transform_column(const Tables& tables, int t, const Samples& sample, Scratch<T>& scratch) {
  Complex<T> x[kRadix];
  CACOPHONY_UNROLL
  for (int n = 0; n < kRadix; ++n) {
    const int k = 2 * kRadix * n + 2 * t;
    if (k < kWindow)
      x[n] = {sample(k) * tables.window[k], sample(k + 1) * tables.window[k + 1]};
    else
      x[n] = {T{}, T{}};
  }
  fft16(x);
  CACOPHONY_UNROLL
  for (int k = 0; k < kRadix; ++k) scratch.at(k, t) = x[4 * (k % 4) + k / 4] * tables.inner[k][t];
}

// Step 2: the second pass, in place; bins t, t + 16, ... of the complex transform.
template <class T>
CACOPHONY_HD void transform_row(int t, Scratch<T>& scratch) {
  Complex<T> x[kRadix];
  CACOPHONY_UNROLL
  for (int n = 0; n < kRadix; ++n) x[n] = scratch.at(t, n);
  fft16(x);
  CACOPHONY_UNROLL
  for (int k = 0; k < kRadix; ++k) scratch.at(t, k) = x[4 * (k % 4) + k / 4];
}

// Step 3: bins k and 256 - k of the real transform from the same two of the complex one; their magnitudes replace the
// real parts. Bins 0 and 256 are in no band.
template <class T>
CACOPHONY_HD void take_magnitudes(const Tables& tables, int t, Scratch<T>& scratch) {
  CACOPHONY_UNROLL
  for (int j = 0; j < kHalf / 2 / kRadix; ++j) {
    const int k = 1 + t + kRadix * j;
    Complex<T>&low = scratch.bin(k), &high = scratch.bin(kHalf - k);
    const Complex<T> even{low.re + high.re, low.im - high.im};
    const Complex<T> odd = Complex<T>{low.im + high.im, high.re - low.re} * tables.outer[k];
    const Complex<T> below = even + odd, above = even - odd;
    low.re = Elementary<T>::root(below.re * below.re + below.im * below.im);
    high.re = Elementary<T>::root(above.re * above.re + above.im * above.im);
  }
}

// Step 4: the magnitudes under one triangle.
template <class T>
CACOPHONY_HD T mel_band(const Tables& tables, int band, Scratch<T>& scratch) {
  T mel{};
  const float* weight = tables.weights + tables.first_weight[band];
  const int first = tables.first_bin[band], count = tables.bin_count[band];
  for (int i = 0; i < count; ++i) mel += scratch.bin(first + i).re * weight[i];
  return mel;
}

// ln x, x > 0: ln 2 in two parts and a polynomial in m - 1, right to 1e-8 of the logarithm before rounding.
template <class T>
CACOPHONY_HD T logarithm(const T& x) {
  T mantissa, exponent;
  Elementary<T>::split(x, mantissa, exponent);
  const T f = mantissa - 1.0f, square = f * f;
  T p = f * -0.0751238614320755f + 0.12809568643569946f;
  p = p * f - 0.1323516070842743f;
  p = p * f + 0.1420130580663681f;
  p = p * f - 0.16615089774131775f;
  p = p * f + 0.20000837743282318f;
  p = p * f - 0.2500106394290924f;
  p = p * f + 0.33333343267440796f;
  const T rest = square * f * p + (exponent * 1.42860677e-6f - square * 0.5f);
  return Elementary<T>::where_finite(x, exponent * 0.693145751953125f + (f + rest));
}

// A band as the networks see it.
template <class T>
CACOPHONY_HD T scaled_log(const T& mel) {
  return logarithm<T>(mel + 1e-5f) * 0.2f + 0.9f;
}

}  // namespace cacophony
