// Greedy decoding: example <folder of libraries> <params.bin> <tokens to make> <prompt token> ...
// Prints the tokens it makes, and on stderr the seconds a token took.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "edgewright.h"

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s <folder> <params.bin> <count> <token> ...\n", argv[0]);
    return 2;
  }
  edgewright_model* model = edgewright_open(argv[1], argv[2], 2);
  if (model == nullptr) {
    std::fprintf(stderr, "%s\n", edgewright_error());
    return 1;
  }
  std::vector<float> logits(edgewright_vocabulary(model));
  std::vector<int32_t> tokens;
  for (int i = 4; i < argc; ++i) tokens.push_back(std::atoi(argv[i]));

  int status = edgewright_feed(model, tokens.data(), tokens.size(), logits.data());
  auto begin = std::chrono::steady_clock::now();
  int count = std::atoi(argv[3]);
  for (int i = 0; i < count && status == 0; ++i) {
    int32_t next = std::max_element(logits.begin(), logits.end()) - logits.begin();
    std::printf("%d\n", next);
    if (i + 1 < count) status = edgewright_feed(model, &next, 1, logits.data());
  }
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  std::fprintf(stderr, "%.4f s a token\n", took.count() / std::max(1, count - 1));
  if (status != 0) std::fprintf(stderr, "%s\n", edgewright_error());
  edgewright_close(model);
  return status == 0 ? 0 : 1;
}
