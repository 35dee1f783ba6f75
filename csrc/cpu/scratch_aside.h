// Scratch of a call that another one comes in the midst of, kept out of its way.

#pragma once

namespace memformer::cpu {

// While it lives, this thread's calls get other scratch (scratch.h) than the call that it was made in.
class ScratchAside {
 public:
  ScratchAside();
  ~ScratchAside();
  ScratchAside(const ScratchAside&) = delete;
  ScratchAside& operator=(const ScratchAside&) = delete;

 private:
  struct Kept;
  void exchange();

  Kept* kept_;
};

}  // namespace memformer::cpu
