// Logits of every token through the C API: scores <library> <params.bin> <exact> <out: float32> <token> ...
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "edgewright.h"

int main(int argc, char** argv) {
  edgewright_model* model = edgewright_open_library(argv[1], argv[2], 2, std::atoi(argv[3]));
  std::vector<int32_t> tokens;
  for (int i = 5; i < argc; ++i) tokens.push_back(std::atoi(argv[i]));
  if (model == nullptr) {
    std::fprintf(stderr, "%s\n", edgewright_error());
    return 1;
  }
  std::vector<float> logits(tokens.size() * edgewright_vocabulary(model));
  if (edgewright_score(model, tokens.data(), tokens.size(), logits.data()) != 0) {
    std::fprintf(stderr, "%s\n", edgewright_error());
    return 1;
  }
  std::FILE* out = std::fopen(argv[4], "wb");
  std::fwrite(logits.data(), sizeof(float), logits.size(), out);
  std::fclose(out);
  edgewright_close(model);
  return 0;
}
