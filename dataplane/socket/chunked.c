/* Chunked bodies: read strictly, whatever way they arrive split.
 *
 * RFC 9112, 7.1: chunk-size [ chunk-ext ] CRLF chunk-data CRLF … 0 CRLF trailer-section CRLF. Every line ends in CRLF; sizes are
 * plain hex digits; no blank stands before an extension (BWS there is something a sender must not write). Extensions must be
 * what the grammar says and are dropped: nobody behind us reads them in another way.
 *
 * Always: what was consumed was checked; after a failure nothing is consumed any more.
 */
#include "http_bytes.h"
#include "http_fields.h"

#define LINE_MAX_BYTES 1024             /* of a chunk's first line */
#define TRAILER_MAX_BYTES 8192          /* of the trailer section */
#define SIZE_DIGITS_MAX 16

enum state {
    SIZE_FIRST = 0,                     /* the first digit of a size */
    SIZE,
    EXTENSION_NAME_FIRST, EXTENSION_NAME, EXTENSION_VALUE_FIRST, EXTENSION_VALUE, EXTENSION_QUOTED, EXTENSION_ESCAPED,
    EXTENSION_AFTER_QUOTED,
    SIZE_LF,
    DATA, DATA_CR, DATA_LF,
    TRAILER_FIRST, TRAILER_NAME, TRAILER_VALUE, TRAILER_LF,
    END_LF, END, FAILED
};

void chunked_begin(struct chunked *c)
{
    *c = (struct chunked){ .state = SIZE_FIRST };
}

static int hex_digit(char byte)
{
    if (!byte_is(byte, BYTE_HEX))
        return -1;
    return is_digit(byte) ? byte - '0' : (byte | 0x20) - 'a' + 10;
}

/* The next state after a byte of a chunk's first line, the size's digits apart. */
static enum state step_extension(enum state state, char byte)
{
    switch (state) {
    case EXTENSION_NAME_FIRST:
        return byte_is(byte, BYTE_TOKEN) ? EXTENSION_NAME : FAILED;
    case EXTENSION_NAME:
        return byte_is(byte, BYTE_TOKEN) ? EXTENSION_NAME
               : byte == '='             ? EXTENSION_VALUE_FIRST
               : byte == ';'             ? EXTENSION_NAME_FIRST
               : byte == '\r'            ? SIZE_LF
                                         : FAILED;
    case EXTENSION_VALUE_FIRST:
        return byte == '"' ? EXTENSION_QUOTED : byte_is(byte, BYTE_TOKEN) ? EXTENSION_VALUE : FAILED;
    case EXTENSION_VALUE:
        return byte_is(byte, BYTE_TOKEN) ? EXTENSION_VALUE
               : byte == ';'             ? EXTENSION_NAME_FIRST
               : byte == '\r'            ? SIZE_LF
                                         : FAILED;
    case EXTENSION_QUOTED:
        return byte == '"'                ? EXTENSION_AFTER_QUOTED
               : byte == '\\'             ? EXTENSION_ESCAPED
               : byte_is(byte, BYTE_VALUE) ? EXTENSION_QUOTED
                                          : FAILED;
    case EXTENSION_ESCAPED:
        return byte_is(byte, BYTE_VALUE) ? EXTENSION_QUOTED : FAILED;
    default: /* EXTENSION_AFTER_QUOTED */
        return byte == ';' ? EXTENSION_NAME_FIRST : byte == '\r' ? SIZE_LF : FAILED;
    }
}

/* May this field follow a body? Not what frames, routes, authenticates or describes the message (RFC 9110, 6.5.1): it would come
 * too late for some recipients and be believed by others. */
static bool may_be_trailer(const char *name, size_t n)
{
    static const char *const forbidden[] = {
        "authorization", "cookie", "set-cookie", "content-type", "content-encoding", "content-range", "cache-control", "range",
        "pragma", "www-authenticate", "age", "date", "expires", "location", "retry-after", "vary", "warning", "if-match",
        "if-none-match", "if-modified-since", "if-unmodified-since", "if-range"
    };
    if (field_name_known(name, n) != NAME_OTHER)
        return false;
    for (size_t i = 0; i < sizeof forbidden / sizeof forbidden[0]; i++)
        if (strlen(forbidden[i]) == n && token_equals(name, forbidden[i], n))
            return false;
    return true;
}

/* Keep n bytes of a trailer line, while there is room for all of it. */
static void keep(struct chunked *c, const char *bytes, size_t n)
{
    if (c->trailer == NULL || c->line_at > c->trailer_room)
        return;
    if (n > c->trailer_room - c->trailer_n) {
        c->trailer_n = c->line_at;
        c->line_at = UINT32_MAX;        /* left out: see keep_line_end() */
        return;
    }
    memcpy(c->trailer + c->trailer_n, bytes, n);
    c->trailer_n += (uint32_t)n;
}

/* A trailer line is whole: its field stays, or leaves. */
static void keep_line_end(struct chunked *c)
{
    keep(c, "\r\n", 2);
    if (c->trailer != NULL && c->line_at <= c->trailer_room) {
        const char *line = c->trailer + c->line_at;
        const char *colon = memchr(line, ':', c->trailer_n - c->line_at);
        if (colon == NULL || colon == line || !may_be_trailer(line, (size_t)(colon - line)))
            c->trailer_n = c->line_at;
    }
    c->line_at = c->trailer_n;
}

static int64_t fail(struct chunked *c)
{
    c->state = FAILED;
    return -1;
}

int64_t chunked_read(struct chunked *c, const char *buf, size_t n, struct span *data)
{
    const char *p = buf, *end = buf + n;
    *data = (struct span){ buf, 0 };
    while (p < end && !c->done) {
        switch ((enum state)c->state) {
        case SIZE_FIRST: {
            const int digit = hex_digit(*p++);
            if (digit < 0)
                return fail(c);
            c->left = (uint64_t)digit;
            c->line_bytes = 1;
            c->state = SIZE;
            break;
        }
        case SIZE: {
            const char byte = *p++;
            const int digit = hex_digit(byte);
            if (digit >= 0) {
                if (c->line_bytes == SIZE_DIGITS_MAX || c->left > (uint64_t)INT64_MAX >> 4)
                    return fail(c);
                c->left = c->left << 4 | (uint64_t)digit;
                c->line_bytes++;
            } else if (byte == '\r') {
                c->state = SIZE_LF;
            } else if (byte == ';') {
                c->state = EXTENSION_NAME_FIRST;
            } else {
                return fail(c);
            }
            break;
        }
        case EXTENSION_NAME_FIRST: case EXTENSION_NAME: case EXTENSION_VALUE_FIRST: case EXTENSION_VALUE:
        case EXTENSION_QUOTED: case EXTENSION_ESCAPED: case EXTENSION_AFTER_QUOTED:
            c->state = step_extension((enum state)c->state, *p++);
            if (c->state == FAILED || ++c->line_bytes > LINE_MAX_BYTES)
                return fail(c);
            break;
        case SIZE_LF:
            if (*p++ != '\n')
                return fail(c);
            c->last = c->left == 0;
            c->state = c->last ? TRAILER_FIRST : DATA;
            break;
        case DATA: {
            if (data->n > 0)
                return p - buf;         /* a second chunk: the next call's */
            const size_t here = (size_t)(end - p) < c->left ? (size_t)(end - p) : (size_t)c->left;
            const uint32_t taken = here > UINT32_MAX ? UINT32_MAX : (uint32_t)here;
            *data = (struct span){ p, taken };
            p += taken;
            c->left -= taken;
            if (c->left > 0)
                return p - buf;
            c->state = DATA_CR;
            break;
        }
        case DATA_CR:
            if (*p++ != '\r')
                return fail(c);
            c->state = DATA_LF;
            break;
        case DATA_LF:
            if (*p++ != '\n')
                return fail(c);
            c->state = SIZE_FIRST;
            break;
        case TRAILER_FIRST:
            if (*p == '\r') {
                p++;
                c->state = END_LF;
                break;
            }
            if (c->trailer_bytes == 0 && p > buf)
                return p - buf;         /* the caller may now say where to keep trailer fields */
            if (!byte_is(*p, BYTE_TOKEN))
                return fail(c);
            c->line_at = c->trailer_n;
            c->state = TRAILER_NAME;
            break;
        case TRAILER_NAME: {
            const char *from = p;
            p = scan_token(p, buf, end);
            c->trailer_bytes += (uint32_t)(p - from);
            if (p < end) {
                if (*p != ':')
                    return fail(c);
                p++;
                c->trailer_bytes++;
                c->state = TRAILER_VALUE;
            }
            if (c->trailer_bytes > TRAILER_MAX_BYTES)
                return fail(c);
            keep(c, from, (size_t)(p - from));
            break;
        }
        case TRAILER_VALUE: {
            const char *from = p;
            p = scan_value(p, buf, end);
            c->trailer_bytes += (uint32_t)(p - from);
            if (c->trailer_bytes > TRAILER_MAX_BYTES)
                return fail(c);
            keep(c, from, (size_t)(p - from));
            if (p < end) {
                if (*p++ != '\r')
                    return fail(c);
                c->state = TRAILER_LF;
            }
            break;
        }
        case TRAILER_LF:
            if (*p++ != '\n')
                return fail(c);
            keep_line_end(c);
            c->state = TRAILER_FIRST;
            break;
        case END_LF:
            if (*p++ != '\n')
                return fail(c);
            c->state = END;
            c->done = true;
            break;
        case END: case FAILED:
            return fail(c);
        }
    }
    return p - buf;
}

size_t chunked_write_size(uint64_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";
    unsigned shift = 60;
    while (shift > 0 && n >> shift == 0)
        shift -= 4;
    char *p = out;
    for (;; shift -= 4) {
        *p++ = digits[n >> shift & 15];
        if (shift == 0)
            break;
    }
    memcpy(p, "\r\n", 2);
    return (size_t)(p + 2 - out);
}
