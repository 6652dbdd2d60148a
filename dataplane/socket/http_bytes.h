/* Bytes of HTTP: which may stand where, and how to find the first that may not, 16 at a time.
 *
 * RFC 9110, 5.6.2 (token), 5.5 (field value); RFC 9112, 3 (request line); RFC 3986, 3.2.2 (host).
 * Private to the HTTP files. Always: no byte at or after end is read, nor one before start.
 */
#ifndef VICKREY_HTTP_BYTES_H
#define VICKREY_HTTP_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum byte_class {
    BYTE_TOKEN = 1,                     /* tchar */
    BYTE_VALUE = 2,                     /* VCHAR, SP, HTAB, obs-text */
    BYTE_TARGET = 4,                    /* VCHAR but '#': what servers take beyond RFC 3986 is passed on as it is */
    BYTE_HOST = 8,                      /* unreserved and sub-delims of RFC 3986 but ',', which would make a list */
    BYTE_HEX = 16,
    BYTE_BASE64 = 32
};

extern const uint8_t http_byte_class[256];

static inline bool byte_is(char byte, enum byte_class wanted)
{
    return (http_byte_class[(unsigned char)byte] & wanted) != 0;
}

static inline bool is_digit(char byte)
{
    return (unsigned char)(byte - '0') < 10;
}

static inline bool is_blank(char byte)
{
    return byte == ' ' || byte == '\t';
}

/* Are these n token bytes the lower-case text, in whatever case? Exact for tokens only: setting bit 5 maps no other token
 * byte onto a letter, a digit or '-'. */
static inline bool token_equals(const char *at, const char *lower, size_t n)
{
    const uint64_t fold = UINT64_C(0x2020202020202020);
    uint64_t a, b, differ = 0;
    if (n >= 8) {
        for (size_t i = 0; i + 8 < n; i += 8) {
            memcpy(&a, at + i, 8);
            memcpy(&b, lower + i, 8);
            differ |= (a | fold) ^ b;
        }
        memcpy(&a, at + n - 8, 8);
        memcpy(&b, lower + n - 8, 8);
        return (differ | ((a | fold) ^ b)) == 0;
    }
    for (size_t i = 0; i < n; i++)
        differ |= (unsigned char)((at[i] | 0x20) ^ lower[i]);
    return differ == 0;
}

/* The three scans differ in one vector expression only: which of 16 bytes stop them. With fewer than 16 bytes left they look
 * at the 16 that end at end, when these belong to the buffer, and shift the known ones out. */
#ifdef __SSE2__
#define SCAN(p, start, end, stops)                                                                                     \
    do {                                                                                                               \
        while (end - p >= 16) {                                                                                        \
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);                                   \
            const unsigned hit = (unsigned)_mm_movemask_epi8(stops(bytes));                                            \
            if (hit)                                                                                                   \
                return p + __builtin_ctz(hit);                                                                         \
            p += 16;                                                                                                   \
        }                                                                                                              \
        if (p < end && end - start >= 16) {                                                                            \
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(end - 16));                          \
            const unsigned hit = (unsigned)_mm_movemask_epi8(stops(bytes)) >> (16 - (end - p));                        \
            return hit ? p + __builtin_ctz(hit) : end;                                                                 \
        }                                                                                                              \
    } while (0)

static inline __m128i stops_value(__m128i b)
{
    const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(b, _mm_set1_epi8(0x1f)), b);
    const __m128i tab = _mm_cmpeq_epi8(b, _mm_set1_epi8('\t'));
    return _mm_or_si128(_mm_andnot_si128(tab, control), _mm_cmpeq_epi8(b, _mm_set1_epi8(0x7f)));
}

static inline __m128i stops_target(__m128i b)
{
    const __m128i printable = _mm_cmpgt_epi8(b, _mm_set1_epi8(0x20));      /* signed: 0x80 and above are not */
    const __m128i refused = _mm_or_si128(_mm_cmpeq_epi8(b, _mm_set1_epi8(0x7f)), _mm_cmpeq_epi8(b, _mm_set1_epi8('#')));
    return _mm_or_si128(_mm_andnot_si128(printable, _mm_set1_epi8(-1)), refused);
}

/* Stops at what is no letter, digit or '-': the caller looks the byte up, other token bytes are rare. */
static inline __m128i stops_name(__m128i b)
{
    const __m128i folded = _mm_or_si128(b, _mm_set1_epi8(0x20));
    const __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(folded, _mm_set1_epi8('a' - 1)),
                                         _mm_cmpgt_epi8(_mm_set1_epi8('z' + 1), folded));
    const __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(b, _mm_set1_epi8('0' - 1)),
                                        _mm_cmpgt_epi8(_mm_set1_epi8('9' + 1), b));
    const __m128i known = _mm_or_si128(_mm_or_si128(letter, digit), _mm_cmpeq_epi8(b, _mm_set1_epi8('-')));
    return _mm_andnot_si128(known, _mm_set1_epi8(-1));
}
#else
#define SCAN(p, start, end, stops) (void)start
#endif

/* The first byte from p on that may not stand in a field value; end when there is none. */
static inline const char *scan_value(const char *p, const char *start, const char *end)
{
    SCAN(p, start, end, stops_value);
    while (p < end && byte_is(*p, BYTE_VALUE))
        p++;
    return p;
}

/* The first that may not stand in a request target. */
static inline const char *scan_target(const char *p, const char *start, const char *end)
{
    SCAN(p, start, end, stops_target);
    while (p < end && byte_is(*p, BYTE_TARGET))
        p++;
    return p;
}

static inline const char *scan_common_name(const char *p, const char *start, const char *end)
{
    SCAN(p, start, end, stops_name);
    while (p < end && (is_digit(*p) || *p == '-' || (unsigned char)((*p | 0x20) - 'a') < 26))
        p++;
    return p;
}

/* The first that may not stand in a token. */
static inline const char *scan_token(const char *p, const char *start, const char *end)
{
    for (;;) {
        p = scan_common_name(p, start, end);
        if (p == end || !byte_is(*p, BYTE_TOKEN))
            return p;
        p++;
    }
}

#endif
