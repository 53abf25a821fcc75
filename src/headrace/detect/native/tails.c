/* How unlikely values are after their past: the p-value of `spike_dip.Tails`, one event after the other.

   The NumPy form (Tails._block, erf.py) says what is computed. This does the same operations in the same order, sums
   included: NumPy adds up a row in eight interleaved sums, halves rows longer than 128, and so does `pairwise`. Both give
   the same bits (tests/detect/test_tails.py), so state and results do not tell which was used. Nothing is kept between
   calls: any thread may call. */

#include <math.h>
#include <stdint.h>

#define STEPS 512
#define HALF 3072              /* grid steps from 0 to the limit, 6.0 */
#define ROUND 6755399441055744.0 /* 1.5 * 2^52: adding and taking it away rounds to even */

/* One copy for each width of vector registers, chosen when loaded; lanes change no bit. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE double block(const double *x, int64_t n) {
    if (n < 8) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; i++) sum += x[i];
        return sum;
    }
    double r[8];
    for (int k = 0; k < 8; k++) r[k] = x[k];
    int64_t i = 8;
    for (; i < n - n % 8; i += 8)
        for (int k = 0; k < 8; k++) r[k] += x[i + k];
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++) sum += x[i];
    return sum;
}

static double halves(const double *x, int64_t n) {
    if (n <= 128) return block(x, n);
    int64_t half = n / 2;
    half -= half % 8;
    return halves(x, half) + halves(x + half, n - half);
}

INLINE double pairwise(const double *x, int64_t n) { return n <= 128 ? block(x, n) : halves(x, n); }

/* `deviation` of each past value from the new one, 0 for the unseen; `square` of it. */
INLINE void deviate(const double *past, double value, int64_t n, int64_t unseen, double *deviation, double *square) {
    for (int64_t j = 0; j < unseen; j++) deviation[j] = square[j] = 0.0;
    for (int64_t j = unseen; j < n; j++) {
        deviation[j] = past[j] - value;
        square[j] = deviation[j] * deviation[j];
    }
}

/* erf(deviation * scale / STEPS) around the nearest grid point; grid: value, slope and curve of each point. */
INLINE void errors(const double *deviation, double scale, int64_t n, const double *value, const double *slope,
                          const double *curve, double *out) {
    for (int64_t j = 0; j < n; j++) {
        double offset = deviation[j] * scale + HALF;
        offset = offset < 0.0 ? 0.0 : offset;
        offset = offset > 2.0 * HALF ? 2.0 * HALF : offset;
        double nearest = (offset + ROUND) - ROUND;
        int32_t at = (int32_t)nearest;
        offset -= nearest;
        out[j] = (curve[at] * offset + slope[at]) * offset + value[at];
    }
}

/* `upper[i]`: the chance of a value at least `values[i]` after flat[places[i] - n .. places[i]), whose last counts[i] count.
   `work` has room for 2 * n doubles. */
WIDEST void headrace_tails(const double *flat, const int64_t *places, const double *values, const int64_t *counts, int64_t rows,
                    int64_t n, double width_min, const double *value, const double *slope, const double *curve,
                    double *work, double *upper) {
    double *deviation = work, *other = work + n;
    for (int64_t i = 0; i < rows; i++) {
        if (i + 3 < rows)
            for (int64_t j = n; j > 0; j -= 8) __builtin_prefetch(flat + places[i + 3] - j);
        int64_t count = counts[i];
        double divisor = count > 1 ? (double)count : 1.0;
        deviate(flat + places[i] - n, values[i], n, n - count, deviation, other);
        double total = pairwise(deviation, n);
        double squares = pairwise(other, n) - total * total / divisor;
        double width = sqrt((squares > 0.0 ? squares : 0.0) / divisor);
        width = width > width_min ? width : width_min;
        if (count == 1) width = 1.0;
        errors(deviation, 1.0 / (width * 1.4142135623730951) * STEPS, n, value, slope, curve, other);
        upper[i] = 0.5 + pairwise(other, n) / (2.0 * divisor);
    }
}
