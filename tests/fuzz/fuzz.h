/* What the fuzz targets share: copies of exactly the right size, so that AddressSanitizer sees every byte read too many. */
#ifndef VICKREY_FUZZ_H
#define VICKREY_FUZZ_H

#include "dataplane/socket/http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASSERT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                             \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* n bytes of memory and no more, a copy of data when there is some. The caller frees. */
static inline char *exact(const void *data, size_t n)
{
    char *copy = malloc(n ? n : 1);
    ASSERT(copy != NULL);
    if (data != NULL && n > 0)
        memcpy(copy, data, n);
    return copy;
}

static inline bool spans_equal(struct span a, struct span b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.at, b.at, a.n) == 0);
}

/* All fields lie inside the head, and neither name nor value holds what would end a line. */
static inline void check_fields(const char *bytes, size_t n, const struct http_head *head)
{
    for (uint32_t i = 0; i < head->n_fields; i++) {
        const struct field *f = &head->fields[i];
        ASSERT(f->name.n > 0 && f->name.at >= bytes && f->name.at + f->name.n < bytes + n);
        ASSERT(f->value.at > f->name.at && f->value.at + f->value.n < bytes + n);
        ASSERT(memchr(f->name.at, ' ', f->name.n) == NULL && memchr(f->name.at, ':', f->name.n) == NULL);
        for (uint32_t j = 0; j < f->value.n; j++)
            ASSERT(f->value.at[j] != '\r' && f->value.at[j] != '\n' && f->value.at[j] != '\0');
        ASSERT(f->kind <= FIELD_MAX_FORWARDS);
    }
}

#endif
