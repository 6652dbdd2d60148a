/* Loads and stores of shared words: the only way that this package touches memory that another thread or process writes.
 *
 * A sequence lock's payload is copied word by word with acquire loads and release stores, instead of relaxed ones between
 * fences. A reader that loaded any new word then also sees the odd sequence that was stored before it (Boehm, "Can seqlocks get
 * along with programming language memory models?", MSPC 2012, section 4). On x86-64 both are plain moves, as relaxed ones
 * are; ThreadSanitizer checks them, which it cannot do with fences.
 */
#ifndef VICKREY_WORDS_H
#define VICKREY_WORDS_H

#include <stdint.h>

/* A word of any struct: may alias its fields. */
typedef uint64_t __attribute__((may_alias)) any_word;

static inline uint64_t word_load(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline uint64_t word_acquire(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void word_store(uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
}

static inline void word_release(uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* Copy bytes (a multiple of 8) out of shared memory, on 8 bytes both. Each word is whole; together they are consistent only
 * under a sequence lock. */
static inline void words_acquire(void *out, const void *shared, uint64_t bytes)
{
    any_word *to = out;
    const any_word *from = shared;
    for (uint64_t i = 0; i < bytes / 8u; i++)
        to[i] = __atomic_load_n(from + i, __ATOMIC_ACQUIRE);
}

/* Copy bytes (a multiple of 8) into shared memory, none of them visible before what was stored earlier. */
static inline void words_release(void *shared, const void *in, uint64_t bytes)
{
    any_word *to = shared;
    const any_word *from = in;
    for (uint64_t i = 0; i < bytes / 8u; i++)
        __atomic_store_n(to + i, from[i], __ATOMIC_RELEASE);
}

/* Sequence lock, writer's side: the next odd number, also when a killed writer left it odd; then the next even one. */
static inline uint64_t sequence_begin(uint64_t *sequence)
{
    uint64_t odd = (word_load(sequence) + 1u) | 1u;
    word_store(sequence, odd);      /* the payload's release stores keep it before them */
    return odd;
}

static inline void sequence_end(uint64_t *sequence, uint64_t odd)
{
    word_release(sequence, odd + 1u); /* pairs with the acquire of the reader's first look */
}

#endif
