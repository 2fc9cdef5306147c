// SPDX-License-Identifier: Apache-2.0
// XLA custom calls for CPUs: attention over few tokens, maps of tokens, the read of a connector,
// and the rows of embedding tables.
//
// They pass over memory once where XLA's own programs pass many times. `ops.py` says what they
// compute and names the plain forms that define them. Work is cut into pieces whose number depends
// on shapes alone and whose sums are added in order: results do not depend on how many threads run.
//
// Letters: B examples, T tokens, H heads, K head width, N tokens of all examples, D width,
// M sources.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <condition_variable>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using F32 = ffi::Buffer<ffi::F32>;
using F32Out = ffi::ResultBuffer<ffi::F32>;

namespace {

constexpr int W = 16;  // floats in a vector: one register of AVX-512, two of AVX2, four of NEON
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec all(float x) { return Vec{} + x; }
inline float sum(Vec v) {
  typedef float Half __attribute__((vector_size(2 * W)));
  typedef float Quarter __attribute__((vector_size(W)));
  Half halves[2];
  std::memcpy(halves, &v, sizeof v);
  const Half half = halves[0] + halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &half, sizeof half);
  const Quarter q = quarters[0] + quarters[1];
  return (q[0] + q[1]) + (q[2] + q[3]);
}
inline int rounded(int n, int to) { return (n + to - 1) / to * to; }

// e^x for x <= 0, to 2 units in the last place; 0 below -87.
inline Vec exp_negative(Vec x) {
  const IntVec tiny = x < -87;
  x = tiny ? all(-87) : x;
  // n = round(x / ln 2) by the shift trick; r = x - n ln 2 in two parts (Cody and Waite).
  const Vec shift = all(12582912.0f);
  const Vec n = (x * 1.44269504f + shift) - shift;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vec e = (p * r) * r + r + 1.0f;
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &power, sizeof scale);
  return tiny ? Vec{} : e * scale;
}

// Runs work(0) .. work(pieces - 1), here and on the pool. A task that starts when no piece is left
// does nothing, so this thread never waits for one that waits for it.
template <typename Work>
void parallel(ffi::ThreadPool& pool, int64_t pieces, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  auto run = [shared, pieces, &work] {
    for (int64_t i; (i = shared->next++) < pieces;) {
      work(i);
      if (++shared->done == pieces) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->finished.notify_all();
      }
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), pieces) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == pieces; });
}

// Memory of this thread, reused between calls.
float* scratch(size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

// ---- products of matrices that fit a cache

// R rows and V vectors of columns of c = a b or, adding, c += a b, where a[m, i] is
// a[m * am + i * ai]. c's tile stays in registers.
template <int R, int V, bool Add>
inline void tile(int I, const float* a, int am, int ai, const float* b, int ldb, float* c,
                 int ldc) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = Add ? load(c + r * ldc + v * W) : Vec{};
  for (int i = 0; i < I; ++i) {
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + i * ldb + v * W);
    for (int r = 0; r < R; ++r) {
      const float x = a[r * am + i * ai];
      for (int v = 0; v < V; ++v) acc[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * W, acc[r][v]);
}

// c [rows, columns] of a [rows, I] and b [I, columns]; columns a multiple of W. Tiles of 8 x 3 or
// 6 x 4 vectors fill 24 of the 32 registers of AVX-512.
template <bool Add = false>
void product(int rows, int columns, int I, const float* a, int am, int ai, const float* b, int ldb,
             float* c, int ldc) {
  const auto run = [&](auto height, int m, int n, int wide) {
    constexpr int R = decltype(height)::value;
    const float *from = a + m * am, *right = b + n;
    float* to = c + m * ldc + n;
    if (wide == 4) tile<R, 4, Add>(I, from, am, ai, right, ldb, to, ldc);
    else if (wide == 3) tile<R, 3, Add>(I, from, am, ai, right, ldb, to, ldc);
    else if (wide == 2) tile<R, 2, Add>(I, from, am, ai, right, ldb, to, ldc);
    else tile<R, 1, Add>(I, from, am, ai, right, ldb, to, ldc);
  };
  for (int n = 0; n < columns;) {
    const int wide = std::min((columns - n) / W, 4);
    const auto down = [&](auto height) {
      constexpr int R = decltype(height)::value;
      int m = 0;
      for (; m + R <= rows; m += R) run(height, m, n, wide);
      // The last rows overlap in a full tile: faster than one by one.
      if (!Add && m < rows && rows > R) run(height, (m = rows) - R, n, wide);
      for (; m + 4 <= rows; m += 4) run(std::integral_constant<int, 4>(), m, n, wide);
      for (; m < rows; ++m) run(std::integral_constant<int, 1>(), m, n, wide);
    };
    if (wide == 4) down(std::integral_constant<int, 6>());
    else down(std::integral_constant<int, 8>());
    n += wide * W;
  }
}

// to [columns, rows] = from [rows, columns] transposed.
void transpose(const float* from, int rows, int columns, float* to) {
  for (int c = 0; c < columns; ++c)
    for (int r = 0; r < rows; ++r) to[c * rows + r] = from[r * columns + c];
}

// ---- attention

// One head of an example. Scores and weights are stored transposed, a row for each key, so that a
// softmax over keys is elementwise over rows of `lanes` queries. K is padded to `width` columns.
struct Head {
  int T, K, H, D, lanes, width;
  float scale;
  bool causal;
  Head(const F32& qkv, int64_t heads, float scale, bool causal)
      : T(qkv.dimensions()[1]), K(qkv.dimensions()[2] / (3 * heads)), H(heads), D(H * K),
        lanes(rounded(T, W)), width(rounded(K, W)), scale(scale), causal(causal) {}

  size_t tokens() const { return size_t(T) * width; }
  size_t transposed() const { return size_t(K) * lanes; }
  size_t square() const { return size_t(T) * lanes; }

  // Weights of keys k for queries q, both [T, K] in qkv. `mask`: false at padded keys, or null.
  void weigh(const float* q, const float* k, const bool* mask, float* qt, float* p) const {
    transpose_from(q, 3 * D, qt, scale);
    product(T, lanes, K, k, 3 * D, 1, qt, lanes, p, lanes);
    hide(p, mask, -1e30f);
    for (int t = 0; t < lanes; t += W) {
      Vec top = load(p + t), total = {};
      for (int u = 1; u < T; ++u) {
        const Vec z = load(p + u * lanes + t);
        top = z > top ? z : top;
      }
      for (int u = 0; u < T; ++u) {
        const Vec e = exp_negative(load(p + u * lanes + t) - top);
        total += e;
        store(p + u * lanes + t, e);
      }
      const Vec inverse = 1 / total;
      for (int u = 0; u < T; ++u) store(p + u * lanes + t, load(p + u * lanes + t) * inverse);
    }
  }
  // Sets p [T keys, lanes] to `value` where a key is masked.
  void hide(float* p, const bool* mask, float value) const {
    for (int u = 0; u < T; ++u) {
      if (mask && !mask[u]) std::fill(p + u * lanes, p + (u + 1) * lanes, value);
      if (causal) std::fill(p + u * lanes, p + u * lanes + u, value);
    }
  }
  // [T, K] with `stride` floats from token to token -> [K, lanes], zeros beyond T.
  void transpose_from(const float* from, int stride, float* to, float times) const {
    for (int k = 0; k < K; ++k) {
      for (int t = 0; t < T; ++t) to[k * lanes + t] = times * from[t * stride + k];
      std::fill(to + k * lanes + T, to + (k + 1) * lanes, 0.0f);
    }
  }
  // Sums p [T keys, lanes] times rows of b over keys, or over queries, to [T, K], `stride` apart.
  // b is [T, K] with `from` floats between rows. `room` is scratch for K that W does not divide.
  void sums(const float* p, bool over_keys, const float* b, int from, float* to, int stride,
            float* room) const {
    const int am = over_keys ? 1 : lanes, ai = over_keys ? lanes : 1;
    if (width == K) {
      product(T, K, T, p, am, ai, b, from, to, stride);
      return;
    }
    float* out = room + tokens();
    for (int t = 0; t < T; ++t) {
      std::copy(b + t * from, b + t * from + K, room + t * width);
      std::fill(room + t * width + K, room + (t + 1) * width, 0.0f);
    }
    product(T, width, T, p, am, ai, room, width, out, width);
    for (int t = 0; t < T; ++t) std::copy(out + t * width, out + t * width + K, to + t * stride);
  }
};

ffi::Error AttendForward(ffi::ThreadPool pool, F32 qkv, ffi::Buffer<ffi::PRED> masks, F32Out y,
                         int64_t heads, float scale, bool causal, bool masked) {
  const Head s(qkv, heads, scale, causal);
  parallel(pool, qkv.dimensions()[0], [&](int64_t b) {
    const bool* mask = masked ? masks.typed_data() + b * s.T : nullptr;
    float* qt = scratch(s.transposed() + s.square() + 2 * s.tokens());
    float *p = qt + s.transposed(), *room = p + s.square();
    for (int h = 0; h < s.H; ++h) {
      const float* q = qkv.typed_data() + b * s.T * 3 * s.D + h * s.K;
      const float *k = q + s.D, *v = k + s.D;
      s.weigh(q, k, mask, qt, p);
      s.sums(p, true, v, 3 * s.D, y->typed_data() + b * s.T * s.D + h * s.K, s.D, room);
    }
  });
  return ffi::Error::Success();
}

ffi::Error AttendBackward(ffi::ThreadPool pool, F32 qkv, ffi::Buffer<ffi::PRED> masks, F32 dy,
                          F32Out out, int64_t heads, float scale, bool causal, bool masked) {
  const Head s(qkv, heads, scale, causal);
  parallel(pool, qkv.dimensions()[0], [&](int64_t b) {
    const bool* mask = masked ? masks.typed_data() + b * s.T : nullptr;
    float* transposed = scratch(s.transposed() + 2 * s.square() + 2 * s.tokens());
    float *p = transposed + s.transposed(), *d = p + s.square(), *room = d + s.square();
    for (int h = 0; h < s.H; ++h) {
      const int64_t at = b * s.T * 3 * s.D + h * s.K;
      const float *q = qkv.typed_data() + at, *k = q + s.D, *v = k + s.D;
      const float* g = dy.typed_data() + b * s.T * s.D + h * s.K;
      float *dq = out->typed_data() + at, *dk = dq + s.D, *dv = dk + s.D;
      s.weigh(q, k, mask, transposed, p);
      s.sums(p, false, g, s.D, dv, 3 * s.D, room);
      // By the weights, then by the scores.
      s.transpose_from(g, s.D, transposed, s.scale);
      product(s.T, s.lanes, s.K, v, 3 * s.D, 1, transposed, s.lanes, d, s.lanes);
      for (int t = 0; t < s.lanes; t += W) {
        Vec mean = {};
        for (int i = t; i < t + s.T * s.lanes; i += s.lanes) mean += load(d + i) * load(p + i);
        for (int i = t; i < t + s.T * s.lanes; i += s.lanes)
          store(d + i, load(p + i) * (load(d + i) - mean));
      }
      s.hide(d, mask, 0);  // a query that sees no key has equal weights
      s.sums(d, true, k, 3 * s.D, dq, 3 * s.D, room);
      s.sums(d, false, q, 3 * s.D, dk, 3 * s.D, room);
    }
  });
  return ffi::Error::Success();
}

// ---- maps of tokens

constexpr int BLOCK = 96;       // tokens of a block
constexpr int64_t SHARE = 512;  // tokens of a piece, where all share a matrix

// Tokens [B, T, ...] in pieces: with a matrix a token (G = T) a piece is one token of all examples,
// with one matrix (G = 1) it is SHARE tokens in the order of memory.
struct Pieces {
  int64_t count, tokens, stride;  // stride: from token to token of a piece, in tokens
  int64_t B, T;
  Pieces(const F32& x, int64_t groups) : B(x.dimensions()[0]), T(x.dimensions()[1]) {
    if (groups == 1) {
      count = (B * T + SHARE - 1) / SHARE, tokens = SHARE, stride = 1;
    } else {
      count = T, tokens = B, stride = T;
    }
  }
  int64_t first(int64_t piece) const { return stride == 1 ? piece * SHARE : piece; }
  int64_t size(int64_t piece) const {
    return stride == 1 ? std::min(SHARE, B * T - piece * SHARE) : B;
  }
  int64_t group(int64_t piece) const { return stride == 1 ? 0 : piece; }
  // Calls work(first token, tokens of the block) for all blocks of a piece.
  template <typename Work>
  void blocks(int64_t piece, const Work& work) const {
    for (int64_t n = 0; n < size(piece); n += BLOCK)
      work(first(piece) + n * stride, int(std::min<int64_t>(BLOCK, size(piece) - n)));
  }
};

// y = x W, W [G, D, O].
ffi::Error DenseForward(ffi::ThreadPool pool, F32 x, F32 w, F32Out y) {
  const Pieces pieces(x, w.dimensions()[0]);
  const int D = w.dimensions()[1], O = w.dimensions()[2];
  parallel(pool, pieces.count, [&](int64_t piece) {
    const float* matrix = w.typed_data() + pieces.group(piece) * D * O;
    pieces.blocks(piece, [&](int64_t at, int n) {
      product(n, O, D, x.typed_data() + at * D, pieces.stride * D, 1, matrix, O,
              y->typed_data() + at * O, pieces.stride * O);
    });
  });
  return ffi::Error::Success();
}

// dx, and dW of each piece.
ffi::Error DenseBackward(ffi::ThreadPool pool, F32 x, F32 w, F32 dy, F32Out dx, F32Out dw) {
  const Pieces pieces(x, w.dimensions()[0]);
  const int D = w.dimensions()[1], O = w.dimensions()[2];
  parallel(pool, pieces.count, [&](int64_t piece) {
    float* transposed = scratch(D * O);
    transpose(w.typed_data() + pieces.group(piece) * D * O, D, O, transposed);
    float* sum = dw->typed_data() + piece * D * O;
    std::fill(sum, sum + D * O, 0.0f);
    pieces.blocks(piece, [&](int64_t at, int n) {
      const float *in = x.typed_data() + at * D, *g = dy.typed_data() + at * O;
      product(n, D, O, g, pieces.stride * O, 1, transposed, D, dx->typed_data() + at * D,
              pieces.stride * D);
      product<true>(D, O, n, in, 1, pieces.stride * D, g, pieces.stride * O, sum, O);
    });
  });
  return ffi::Error::Success();
}

// sigmoid(2 sqrt(2 / pi) (h + 0.044715 h^3)): h times it is GELU in its tanh form.
inline Vec gelu_share(Vec h) {
  const Vec z = h * (1.59576912f + 0.0713548163f * h * h);
  const Vec e = exp_negative(z < 0 ? z : -z);
  return (z < 0 ? e : all(1)) / (1 + e);
}

// y = GELU(x W1) W2, W1 [G, D, M], W2 [G, M, O].
ffi::Error FeedForward(ffi::ThreadPool pool, F32 x, F32 w1, F32 w2, F32Out y) {
  const Pieces pieces(x, w1.dimensions()[0]);
  const int D = w1.dimensions()[1], M = w1.dimensions()[2], O = w2.dimensions()[2];
  parallel(pool, pieces.count, [&](int64_t piece) {
    float* h = scratch(BLOCK * M);
    const int64_t group = pieces.group(piece);
    pieces.blocks(piece, [&](int64_t at, int n) {
      product(n, M, D, x.typed_data() + at * D, pieces.stride * D, 1,
              w1.typed_data() + group * D * M, M, h, M);
      for (int i = 0; i < n * M; i += W) store(h + i, load(h + i) * gelu_share(load(h + i)));
      product(n, O, M, h, M, 1, w2.typed_data() + group * M * O, O, y->typed_data() + at * O,
              pieces.stride * O);
    });
  });
  return ffi::Error::Success();
}

// dx, and dW1 and dW2 of each piece. Recomputes the hidden layer, a block at a time.
ffi::Error FeedBackward(ffi::ThreadPool pool, F32 x, F32 w1, F32 w2, F32 dy, F32Out dx, F32Out dw1,
                        F32Out dw2) {
  const Pieces pieces(x, w1.dimensions()[0]);
  const int D = w1.dimensions()[1], M = w1.dimensions()[2], O = w2.dimensions()[2];
  parallel(pool, pieces.count, [&](int64_t piece) {
    float* h = scratch(2 * BLOCK * M + M * (D + O));
    float *d = h + BLOCK * M, *transposed1 = d + BLOCK * M, *transposed2 = transposed1 + M * D;
    const float* first = w1.typed_data() + pieces.group(piece) * D * M;
    transpose(first, D, M, transposed1);
    transpose(w2.typed_data() + pieces.group(piece) * M * O, M, O, transposed2);
    float *sum1 = dw1->typed_data() + piece * D * M, *sum2 = dw2->typed_data() + piece * M * O;
    std::fill(sum1, sum1 + D * M, 0.0f);
    std::fill(sum2, sum2 + M * O, 0.0f);
    pieces.blocks(piece, [&](int64_t at, int n) {
      const float *in = x.typed_data() + at * D, *g = dy.typed_data() + at * O;
      product(n, M, D, in, pieces.stride * D, 1, first, M, h, M);
      product(n, M, O, g, pieces.stride * O, 1, transposed2, M, d, M);
      for (int i = 0; i < n * M; i += W) {
        const Vec x = load(h + i), s = gelu_share(x);
        const Vec slope = s + x * s * (1 - s) * (1.59576912f + 0.214064449f * x * x);
        store(d + i, load(d + i) * slope);
        store(h + i, x * s);
      }
      product<true>(M, O, n, h, 1, M, g, pieces.stride * O, sum2, O);
      product<true>(D, M, n, in, 1, pieces.stride * D, d, M, sum1, M);
      product(n, D, M, d, M, 1, transposed1, D, dx->typed_data() + at * D, pieces.stride * D);
    });
  });
  return ffi::Error::Success();
}

// ---- the read of a connector

// 1 / RMS of x [D].
inline float inverse_rms(const float* x, int D) {
  Vec squares = {};
  for (int d = 0; d < D; d += W) squares += load(x + d) * load(x + d);
  return 1 / std::sqrt(sum(squares) / D + 1e-6f);
}

// Scores z = times <w_s, b / RMS(b)> + center of a source b [B, T, D] for the queries w [S, D] of
// all reads, or SiLU(z). Columns 0 .. S-1 are in arrays that follow one another, [B, T, any].
struct Score {
  int D, S, lanes;
  float times, center;
  bool silu;
  const float *b, *w;
  Score(const F32& b, const F32& w, float times, float center, bool silu)
      : D(w.dimensions()[1]), S(w.dimensions()[0]), lanes(rounded(S, W)), times(times),
        center(center), silu(silu), b(b.typed_data()), w(w.typed_data()) {}

  size_t room() const { return size_t(D + BLOCK) * lanes; }
  // The queries transposed [D, lanes], zeros beyond S.
  void queries(float* transposed) const {
    std::fill(transposed, transposed + D * lanes, 0.0f);
    for (int s = 0; s < S; ++s)
      for (int d = 0; d < D; ++d) transposed[d * lanes + s] = w[s * D + d];
  }
  // times <w_s, b_n> / RMS(b_n) of n tokens [n, lanes].
  void of(int64_t at, int n, const float* transposed, float* z) const {
    product(n, lanes, D, b + at * D, D, 1, transposed, lanes, z, lanes);
    for (int t = 0; t < n; ++t) {
      const float inverse = times * inverse_rms(b + (at + t) * D, D);
      for (int s = 0; s < lanes; s += W) store(z + t * lanes + s, inverse * load(z + t * lanes + s));
    }
  }
};

inline Vec sigmoid(Vec z) {
  const Vec e = exp_negative(z < 0 ? z : -z);
  return (z < 0 ? e : all(1)) / (1 + e);
}

ffi::Error ScoreForward(ffi::ThreadPool pool, F32 b, F32 w, ffi::RemainingRets outs, float times,
                        float center, bool silu) {
  const Score score(b, w, times, center, silu);
  const Pieces pieces(b, 1);
  std::vector<F32> to;
  for (size_t i = 0; i < outs.size(); ++i) to.push_back(**outs.get<F32>(i));
  parallel(pool, pieces.count, [&](int64_t piece) {
    float *transposed = scratch(score.room()), *z = transposed + score.D * score.lanes;
    score.queries(transposed);
    pieces.blocks(piece, [&](int64_t at, int n) {
      score.of(at, n, transposed, z);
      for (int i = 0; i < n * score.lanes; i += W) {
        const Vec x = load(z + i) + score.center;
        store(z + i, score.silu ? x * sigmoid(x) : x);
      }
      int first = 0;
      for (const F32& out : to) {
        const int size = out.dimensions().back();
        for (int t = 0; t < n; ++t)
          std::copy_n(z + t * score.lanes + first, size, out.typed_data() + (at + t) * size);
        first += size;
      }
    });
  });
  return ffi::Error::Success();
}

// db, and dW a piece.
ffi::Error ScoreBackward(ffi::ThreadPool pool, F32 b, F32 w, ffi::RemainingArgs rest, F32Out db,
                         F32Out dw, float times, float center, bool silu) {
  const Score score(b, w, times, center, silu);
  const Pieces pieces(b, 1);
  const int D = score.D, S = score.S, lanes = score.lanes;
  std::vector<F32> from;
  for (size_t i = 0; i < rest.size(); ++i) from.push_back(*rest.get<F32>(i));
  parallel(pool, pieces.count, [&](int64_t piece) {
    float *transposed = scratch(score.room() + BLOCK * lanes), *z = transposed + D * lanes;
    float *g = z + BLOCK * lanes, *sum_w = dw->typed_data() + piece * S * D;
    score.queries(transposed);
    std::fill(sum_w, sum_w + S * D, 0.0f);
    pieces.blocks(piece, [&](int64_t at, int n) {
      const float* x = score.b + at * D;
      float* dx = db->typed_data() + at * D;
      score.of(at, n, transposed, z);
      std::fill(g, g + n * lanes, 0.0f);
      int first = 0;
      for (const F32& dz : from) {
        const int size = dz.dimensions().back();
        for (int t = 0; t < n; ++t)
          std::copy_n(dz.typed_data() + (at + t) * size, size, g + t * lanes + first);
        first += size;
      }
      for (int t = 0; t < n; ++t) {
        const float inverse = inverse_rms(x + t * D, D);
        // g: by z, then by <w, b>. What the norm passes back is along b.
        Vec along = {};
        for (int s = t * lanes; s < (t + 1) * lanes; s += W) {
          Vec by_z = load(g + s);
          if (score.silu) {
            const Vec y = load(z + s) + score.center, share = sigmoid(y);
            by_z *= share * (1 + y * (1 - share));
          }
          along += by_z * load(z + s);
          store(g + s, score.times * inverse * by_z);
        }
        z[t * lanes] = sum(along) * inverse * inverse / D;  // the scores are done with
      }
      product(n, D, S, g, lanes, 1, score.w, D, dx, D);
      for (int t = 0; t < n; ++t)
        for (int d = t * D; d < (t + 1) * D; d += W)
          store(dx + d, load(dx + d) - z[t * lanes] * load(x + d));
      product<true>(S, D, n, g, 1, lanes, x, D, sum_w, D);
    });
  });
  return ffi::Error::Success();
}

constexpr int64_t PIECE = 64;  // tokens

// u = gx x + gr sum_i a_i b_i. Weight a_i is column `columns[i]` of the i-th array of weights
// [N, any], or of the only one; arrays of weights stand before the sources.
struct Read {
  int64_t N, D, M;
  const float *x, *gx, *gr, *scale;
  struct Source {
    const float *b, *a;
    int64_t stride;  // from token to token of a
  };
  std::vector<Source> sources;
  bool norm;

  Read(const F32& x, const F32& gx, const F32& gr, const F32& scale, bool norm,
       ffi::Span<const int64_t> columns, ffi::RemainingArgs& rest)
      : D(x.dimensions().back()), M(columns.size()), x(x.typed_data()), gx(gx.typed_data()),
        gr(gr.typed_data()), scale(scale.typed_data()), norm(norm) {
    N = x.element_count() / D;
    const int64_t arrays = rest.size() - M;
    for (int64_t i = 0; i < M; ++i) {
      const F32 a = *rest.get<F32>(arrays == 1 ? 0 : i), b = *rest.get<F32>(arrays + i);
      sources.push_back({b.typed_data(), a.typed_data() + columns[i], a.dimensions().back()});
    }
  }

  int64_t pieces() const { return (N + PIECE - 1) / PIECE; }

  // V vectors of r and u of token n, from dimension d on; a weight is loaded once for them.
  template <int V>
  void part(int64_t n, int64_t d, float* r, float* u) const {
    Vec recalled[V] = {};
    for (const Source& s : sources) {
      const float weight = s.a[n * s.stride];
      for (int v = 0; v < V; ++v) recalled[v] += weight * load(s.b + n * D + d + v * W);
    }
    for (int v = 0; v < V; ++v, d += W) {
      store(r + d, recalled[v]);
      store(u + d, load(gx + d) * load(x + n * D + d) + load(gr + d) * recalled[v]);
    }
  }

  // r [D] and u [D] of token n; returns 1 / RMS(u), or 1 without a norm.
  float mix(int64_t n, float* r, float* u) const {
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) part<4>(n, d, r, u);
    for (; d < D; d += W) part<1>(n, d, r, u);
    return norm ? inverse_rms(u, D) : 1;
  }
};

ffi::Error ReadForward(ffi::ThreadPool pool, F32 x, F32 gx, F32 gr, F32 scale,
                       ffi::RemainingArgs rest, F32Out y, bool norm,
                       ffi::Span<const int64_t> columns) {
  const Read read(x, gx, gr, scale, norm, columns, rest);
  const int64_t D = read.D;
  parallel(pool, read.pieces(), [&](int64_t piece) {
    float *r = scratch(2 * D), *u = r + D;
    for (int64_t n = piece * PIECE; n < std::min((piece + 1) * PIECE, read.N); ++n) {
      const float inverse = read.mix(n, r, u);
      for (int64_t d = 0; d < D; d += W)
        store(y->typed_data() + n * D + d, inverse * load(u + d) * load(read.scale + d));
    }
  });
  return ffi::Error::Success();
}

// Gradients by u and the weights [N, M]; by gx, gr and scale a row a piece, [pieces, 3, D].
ffi::Error ReadBackward(ffi::ThreadPool pool, F32 x, F32 gx, F32 gr, F32 scale, F32 dy,
                        ffi::RemainingArgs rest, F32Out du, F32Out da, F32Out sums, bool norm,
                        ffi::Span<const int64_t> columns) {
  const Read read(x, gx, gr, scale, norm, columns, rest);
  const int64_t D = read.D, M = read.M;
  parallel(pool, read.pieces(), [&](int64_t piece) {
    float *r = scratch(3 * D), *u = r + D, *by_r = u + D;
    float* by_gx = sums->typed_data() + piece * 3 * D;
    float *by_gr = by_gx + D, *by_scale = by_gr + D;
    std::fill(by_gx, by_gx + 3 * D, 0.0f);
    for (int64_t n = piece * PIECE; n < std::min((piece + 1) * PIECE, read.N); ++n) {
      const float inverse = read.mix(n, r, u);
      const float* g = dy.typed_data() + n * D;
      float shared = 0;
      if (norm) {
        Vec total = {};
        for (int64_t d = 0; d < D; d += W)
          total += load(g + d) * load(read.scale + d) * load(u + d);
        shared = inverse * inverse * sum(total) / D;
      }
      for (int64_t d = 0; d < D; d += W) {
        const Vec mixed = load(u + d), of_y = load(g + d);
        const Vec of_u = inverse * (of_y * load(read.scale + d) - mixed * shared);
        store(by_scale + d, load(by_scale + d) + inverse * of_y * mixed);
        store(by_gx + d, load(by_gx + d) + of_u * load(read.x + n * D + d));
        store(by_gr + d, load(by_gr + d) + of_u * load(r + d));
        store(du->typed_data() + n * D + d, of_u);
        store(by_r + d, of_u * load(read.gr + d));
      }
      for (int64_t i = 0; i < M; ++i) {
        Vec total = {};
        for (int64_t d = 0; d < D; d += W)
          total += load(by_r + d) * load(read.sources[i].b + n * D + d);
        da->typed_data()[n * M + i] = sum(total);
      }
    }
  });
  return ffi::Error::Success();
}

// ---- rows of a batch

// Indexes as JAX does: -1 is the last row. Returns -1 for indices out of range.
inline int64_t row_of(int32_t at, int64_t U) {
  const int64_t row = at < 0 ? at + U : at;
  return row < 0 || row >= U ? -1 : row;
}

// Rows of a table come in no order: the next ones are prefetched.
constexpr int AHEAD = 8;
template <bool Write = false>
inline void fetch(const float* p, int64_t E) {
  for (int64_t e = 0; e < E; e += 16) __builtin_prefetch(p + e, Write);
}

// y [n, E] = rows [U, E] at `at` [n]; `fill` where `at` is out of range.
ffi::Error RowsTake(ffi::ThreadPool pool, F32 rows, ffi::Buffer<ffi::S32> at, F32Out y,
                    float fill) {
  const int64_t U = rows.dimensions()[0], E = rows.dimensions()[1], n = at.element_count();
  const int64_t piece_size = 1024;
  parallel(pool, (n + piece_size - 1) / piece_size, [&](int64_t piece) {
    const int64_t end = std::min((piece + 1) * piece_size, n);
    for (int64_t i = piece * piece_size; i < end; ++i) {
      const int64_t next = i + AHEAD < end ? row_of(at.typed_data()[i + AHEAD], U) : -1;
      if (next >= 0) fetch(rows.typed_data() + next * E, E);
      const int64_t row = row_of(at.typed_data()[i], U);
      if (row < 0) std::fill_n(y->typed_data() + i * E, E, fill);
      else std::copy_n(rows.typed_data() + row * E, E, y->typed_data() + i * E);
    }
  });
  return ffi::Error::Success();
}

constexpr int SUMS = 1 << 18;  // floats of a piece: a megabyte

// sums [U, E] of g [n, E] by row; a piece has rows that fit a cache and adds in the order of g.
ffi::Error RowsSum(ffi::ThreadPool pool, F32 g, ffi::Buffer<ffi::S32> at, F32Out sums) {
  const int64_t E = sums->dimensions()[1], U = sums->dimensions()[0], n = at.element_count();
  const int64_t piece_size = std::max<int64_t>(SUMS / E, 1);
  parallel(pool, (U + piece_size - 1) / piece_size, [&](int64_t piece) {
    const int64_t first = piece * piece_size, rows = std::min(piece_size, U - first);
    float* to = sums->typed_data() + first * E;
    std::fill_n(to, rows * E, 0.0f);
    thread_local std::vector<int32_t> indices;  // of g for these rows
    indices.resize(n);
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      indices[count] = i;
      count += uint64_t(row_of(at.typed_data()[i], U) - first) < uint64_t(rows);
    }
    for (int64_t k = 0; k < count; ++k) {
      if (k + AHEAD < count) fetch(g.typed_data() + indices[k + AHEAD] * E, E);
      float* sum = to + (row_of(at.typed_data()[indices[k]], U) - first) * E;
      const float* from = g.typed_data() + indices[k] * E;
      int64_t e = 0;
      for (; e + W <= E; e += W) store(sum + e, load(sum + e) + load(from + e));
      for (; e < E; ++e) sum[e] += from[e];
    }
  });
  return ffi::Error::Success();
}

// Calls move(u, row) for the unique rows `at` [U] of N, in pieces; prefetches the rows of `arrays`
// (pointer, width).
using Array = std::pair<float*, int64_t>;
template <typename Move>
void move_rows(ffi::ThreadPool& pool, ffi::Buffer<ffi::S32> at, int64_t N,
               std::initializer_list<Array> arrays, const Move& move) {
  const int64_t U = at.element_count(), piece_size = 1024;
  parallel(pool, (U + piece_size - 1) / piece_size, [&](int64_t piece) {
    const int64_t end = std::min((piece + 1) * piece_size, U);
    for (int64_t u = piece * piece_size; u < end; ++u) {
      const int64_t next = u + AHEAD < end ? row_of(at.typed_data()[u + AHEAD], N) : -1;
      if (next >= 0) for (auto [array, E] : arrays) fetch<true>(array + next * E, E);
      const int64_t row = row_of(at.typed_data()[u], N);
      if (row >= 0) move(u, row);
    }
  });
}

// Row-wise Adagrad in place. w [N, E] and its s [N] are the results' memory.
ffi::Error RowsAdagrad(ffi::ThreadPool pool, F32, F32, ffi::Buffer<ffi::S32> at, F32 g, F32 lr,
                       F32Out w, F32Out s, float eps, float l2) {
  const int64_t N = w->dimensions()[0], E = w->dimensions()[1];
  const float rate = lr.typed_data()[0];
  const auto arrays = {Array{w->typed_data(), E}, Array{s->typed_data(), 1}};
  move_rows(pool, at, N, arrays, [&](int64_t u, int64_t row) {
    float* to = w->typed_data() + row * E;
    const float* by = g.typed_data() + u * E;
    Vec squares{};
    float square = 0;
    int64_t e = 0;
    for (; e + W <= E; e += W) {
      const Vec d = load(by + e) + l2 * load(to + e);
      squares += d * d;
    }
    for (int64_t i = e; i < E; ++i) square += (by[i] + l2 * to[i]) * (by[i] + l2 * to[i]);
    const float total = s->typed_data()[row] += (sum(squares) + square) / E;
    const float under = std::sqrt(total) + eps;
    for (int64_t i = 0; i < E; ++i) to[i] -= rate * (by[i] + l2 * to[i]) / under;
  });
  return ffi::Error::Success();
}

// Lazy Adam in place. w, m and v [N, E] are the results' memory; rates: lr, 1 - b1^t, 1 - b2^t.
ffi::Error RowsAdam(ffi::ThreadPool pool, F32, F32, F32, ffi::Buffer<ffi::S32> at, F32 g,
                    F32 rates, F32Out w, F32Out m, F32Out v, double b1, double b2, float eps,
                    float l2) {
  const int64_t N = w->dimensions()[0], E = w->dimensions()[1];
  const float lr = rates.typed_data()[0], c1 = rates.typed_data()[1], c2 = rates.typed_data()[2];
  const float k1 = b1, k2 = b2, n1 = 1 - b1, n2 = 1 - b2;  // 1 - 0.999f is not 0.001f
  const auto arrays = {Array{w->typed_data(), E}, Array{m->typed_data(), E},
                       Array{v->typed_data(), E}};
  move_rows(pool, at, N, arrays, [&](int64_t u, int64_t row) {
    float* __restrict to = w->typed_data() + row * E;
    float* __restrict mean = m->typed_data() + row * E;
    float* __restrict square = v->typed_data() + row * E;
    const float* __restrict by = g.typed_data() + u * E;
    for (int64_t e = 0; e < E; ++e) {
      const float d = by[e] + l2 * to[e];
      mean[e] = k1 * mean[e] + n1 * d;
      square[e] = k2 * square[e] + n2 * d * d;
      to[e] -= lr * (mean[e] / c1) / (std::sqrt(square[e] / c2) + eps);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

// Signatures, in the order of the functions' parameters.
#define BIND(name, function, signature)       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function, \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() signature)
#define IN .Arg<F32>()
#define OUT .Ret<F32>()
#define MASK .Arg<ffi::Buffer<ffi::PRED>>()
#define AT .Arg<ffi::Buffer<ffi::S32>>()
#define ATTR(type, name) .Attr<type>(name)
#define ATTEND \
  ATTR(int64_t, "heads") ATTR(float, "scale") ATTR(bool, "causal") ATTR(bool, "masked")
#define SCORE ATTR(float, "times") ATTR(float, "center") ATTR(bool, "silu")
#define READ ATTR(bool, "norm") ATTR(ffi::Span<const int64_t>, "columns")
#define ADAM ATTR(double, "b1") ATTR(double, "b2") ATTR(float, "eps") ATTR(float, "l2")

BIND(attend_forward, AttendForward, IN MASK OUT ATTEND);
BIND(attend_backward, AttendBackward, IN MASK IN OUT ATTEND);
BIND(dense_forward, DenseForward, IN IN OUT);
BIND(dense_backward, DenseBackward, IN IN IN OUT OUT);
BIND(feed_forward, FeedForward, IN IN IN OUT);
BIND(feed_backward, FeedBackward, IN IN IN IN OUT OUT OUT);
BIND(score_forward, ScoreForward, IN IN.RemainingRets() SCORE);
BIND(score_backward, ScoreBackward, IN IN.RemainingArgs() OUT OUT SCORE);
BIND(read_forward, ReadForward, IN IN IN IN.RemainingArgs() OUT READ);
BIND(read_backward, ReadBackward, IN IN IN IN IN.RemainingArgs() OUT OUT OUT READ);
BIND(rows_take, RowsTake, IN AT OUT ATTR(float, "fill"));
BIND(rows_sum, RowsSum, IN AT OUT);
BIND(rows_adagrad, RowsAdagrad, IN IN AT IN IN OUT OUT ATTR(float, "eps") ATTR(float, "l2"));
BIND(rows_adam, RowsAdam, IN IN IN AT IN IN OUT OUT OUT ADAM);
