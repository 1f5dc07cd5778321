/* log Z of linear chains with its gradient, as fast as plain C goes: 32 sequences beside one another in the vector registers.

   What the benchmark of chains compares with; no part of the library. Scaled probabilities, no masks, no guard against underflow, a batch
   that is a multiple of 32. Compile: cc -O3 -march=native -ffast-math -shared -fPIC chain_kernel.c -lm */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define SEQ 32 /* sequences that go together: two vectors */
#define STEPS 16 /* steps whose messages wait for their product of pair counts */

typedef float v16 __attribute__((vector_size(4 * LANES)));

static void *room(size_t floats) { return aligned_alloc(64, (floats * 4 + 63) / 64 * 64); }

/* out[k] = Σ_j in[j] w[j * K + k], for 32 sequences; in, out: [K][SEQ] */
static void product(const float *in, const float *w, float *out, int K) {
    for (int k0 = 0; k0 < K; k0 += 10) {
        int n = K - k0 < 10 ? K - k0 : 10;
        v16 s[10][2] = {{{0}}};
        if (n == 10) {
            for (int j = 0; j < K; j++) {
                v16 x = *(const v16 *)(in + j * SEQ), y = *(const v16 *)(in + j * SEQ + LANES);
                const float *row = w + j * K + k0;
#pragma GCC unroll 10
                for (int i = 0; i < 10; i++) { s[i][0] += x * row[i]; s[i][1] += y * row[i]; }
            }
        } else {
            for (int i = 0; i < n; i++)
                for (int j = 0; j < K; j++) {
                    s[i][0] += *(const v16 *)(in + j * SEQ) * w[j * K + k0 + i];
                    s[i][1] += *(const v16 *)(in + j * SEQ + LANES) * w[j * K + k0 + i];
                }
        }
        for (int i = 0; i < n; i++) {
            *(v16 *)(out + (k0 + i) * SEQ) = s[i][0];
            *(v16 *)(out + (k0 + i) * SEQ + LANES) = s[i][1];
        }
    }
}

/* counts[j][k] += Σ_t Σ_lanes a[t][j] q[t][k] */
static void outer(const float *a, const float *q, float *counts, int steps, int K) {
    size_t stride = (size_t)K * SEQ;
    for (int j0 = 0; j0 < K; j0 += 5)
        for (int k0 = 0; k0 < K; k0 += 5) {
            int nj = K - j0 < 5 ? K - j0 : 5, nk = K - k0 < 5 ? K - k0 : 5;
            v16 s[5][5] = {{{0}}};
            if (nj == 5 && nk == 5) {
                for (int t = 0; t < steps; t++)
                    for (int h = 0; h < SEQ; h += LANES) {
                        const float *x = a + t * stride + j0 * SEQ + h, *y = q + t * stride + k0 * SEQ + h;
                        v16 xs[5];
#pragma GCC unroll 5
                        for (int i = 0; i < 5; i++) xs[i] = *(const v16 *)(x + i * SEQ);
#pragma GCC unroll 5
                        for (int l = 0; l < 5; l++) {
                            v16 ys = *(const v16 *)(y + l * SEQ);
#pragma GCC unroll 5
                            for (int i = 0; i < 5; i++) s[i][l] += xs[i] * ys;
                        }
                    }
            } else {
                for (int t = 0; t < steps; t++)
                    for (int h = 0; h < SEQ; h += LANES)
                        for (int i = 0; i < nj; i++)
                            for (int l = 0; l < nk; l++)
                                s[i][l] += *(const v16 *)(a + t * stride + (j0 + i) * SEQ + h) *
                                           *(const v16 *)(q + t * stride + (k0 + l) * SEQ + h);
            }
            for (int i = 0; i < nj; i++)
                for (int l = 0; l < nk; l++) {
                    float sum = 0;
                    for (int b = 0; b < LANES; b++) sum += s[i][l][b];
                    counts[(j0 + i) * K + k0 + l] += sum;
                }
        }
}

/* emissions, nodes: [B][T][K]; transitions, pairs: [K][K]. Returns Σ_b log Z_b. */
double chain_log_z(const float *emissions, const float *transitions, float *nodes, float *pairs, int B, int T, int K) {
    size_t step = (size_t)K * SEQ;
    float *e = room(T * step), *a = room(T * step), *w = room(K * K), *wt = room(K * K);
    float *beta = room(step), *q = room(STEPS * step), *held = room(STEPS * step), *counts = room(K * K);
    float peak = -INFINITY;
    double total = 0;
    for (int i = 0; i < K * K; i++) peak = transitions[i] > peak ? transitions[i] : peak;
    for (int j = 0; j < K; j++)
        for (int k = 0; k < K; k++) wt[k * K + j] = w[j * K + k] = expf(transitions[j * K + k] - peak);
    memset(counts, 0, 4 * (size_t)K * K);
    for (int b0 = 0; b0 < B; b0 += SEQ) {
        for (int t = 0; t < T; t++) {
            float *et = e + t * step, *at = a + t * step;
            float top[SEQ], c[SEQ];
            for (int b = 0; b < SEQ; b++) {
                const float *row = emissions + ((size_t)(b0 + b) * T + t) * K;
                float m = row[0];
                for (int k = 1; k < K; k++) m = row[k] > m ? row[k] : m;
                top[b] = m;
                for (int k = 0; k < K; k++) et[k * SEQ + b] = row[k] - m;
            }
            for (size_t i = 0; i < step; i++) et[i] = expf(et[i]);
            if (t) {
                product(at - step, w, at, K);
                for (size_t i = 0; i < step; i++) at[i] *= et[i];
            } else memcpy(at, et, 4 * step);
            for (int b = 0; b < SEQ; b++) c[b] = 0;
            for (int k = 0; k < K; k++)
                for (int b = 0; b < SEQ; b++) c[b] += at[k * SEQ + b];
            for (int b = 0; b < SEQ; b++) { total += logf(c[b]) + top[b] + (t ? peak : 0); c[b] = 1 / c[b]; }
            for (int k = 0; k < K; k++)
                for (int b = 0; b < SEQ; b++) { at[k * SEQ + b] *= c[b]; et[k * SEQ + b] *= c[b]; }
        }
        for (size_t i = 0; i < step; i++) beta[i] = 1;
        int waiting = 0;
        for (int t = T - 1; t >= 0; t--) {
            float *at = a + t * step, *et = e + t * step;
            for (int b = 0; b < SEQ; b++)
                for (int k = 0; k < K; k++)
                    nodes[((size_t)(b0 + b) * T + t) * K + k] = at[k * SEQ + b] * beta[k * SEQ + b];
            if (!t) break;
            float *qt = q + waiting * step;
            for (size_t i = 0; i < step; i++) qt[i] = et[i] * beta[i];
            memcpy(held + waiting * step, at - step, 4 * step);
            product(qt, wt, beta, K);
            if (++waiting == STEPS) { outer(held, q, counts, waiting, K); waiting = 0; }
        }
        if (waiting) outer(held, q, counts, waiting, K);
    }
    for (int i = 0; i < K * K; i++) pairs[i] = counts[i] * w[i];
    free(e); free(a); free(w); free(wt); free(beta); free(q); free(held); free(counts);
    return total;
}
