/* The field section of a head: lines into fields, names recognised, lists taken apart.
 *
 * RFC 9112, 5 (field lines); RFC 9110, 5.6.1 (lists), 7.6.1 (Connection). No obs-fold, no bare CR or LF, no blank before the
 * colon: each of them makes two recipients see two different messages.
 */
#include "http_fields.h"
#include "http_bytes.h"

#define TOKEN BYTE_TOKEN
#define VALUE BYTE_VALUE
#define TARGET BYTE_TARGET
#define HOST BYTE_HOST

/* Letters and digits stand in everything; HEX and BASE64 are added for those that belong there. */
#define WORD (TOKEN | VALUE | TARGET | HOST | BYTE_BASE64)
#define PUNCT (VALUE | TARGET)

const uint8_t http_byte_class[256] = {
    ['\t'] = VALUE, [' '] = VALUE,
    ['0' ... '9'] = WORD | BYTE_HEX,
    ['A' ... 'F'] = WORD | BYTE_HEX, ['G' ... 'Z'] = WORD,
    ['a' ... 'f'] = WORD | BYTE_HEX, ['g' ... 'z'] = WORD,
    ['-'] = TOKEN | PUNCT | HOST, ['.'] = TOKEN | PUNCT | HOST, ['_'] = TOKEN | PUNCT | HOST, ['~'] = TOKEN | PUNCT | HOST,
    ['!'] = TOKEN | PUNCT | HOST, ['$'] = TOKEN | PUNCT | HOST, ['&'] = TOKEN | PUNCT | HOST, ['\''] = TOKEN | PUNCT | HOST,
    ['*'] = TOKEN | PUNCT | HOST, ['+'] = TOKEN | PUNCT | HOST | BYTE_BASE64,
    ['('] = PUNCT | HOST, [')'] = PUNCT | HOST, [';'] = PUNCT | HOST, ['='] = PUNCT | HOST,
    ['#'] = TOKEN | VALUE, ['%'] = TOKEN | PUNCT, ['^'] = TOKEN | PUNCT, ['`'] = TOKEN | PUNCT, ['|'] = TOKEN | PUNCT,
    ['"'] = PUNCT, [','] = PUNCT, ['/'] = PUNCT | BYTE_BASE64, [':'] = PUNCT, ['<'] = PUNCT, ['>'] = PUNCT, ['?'] = PUNCT,
    ['@'] = PUNCT, ['['] = PUNCT, ['\\'] = PUNCT, [']'] = PUNCT, ['{'] = PUNCT, ['}'] = PUNCT,
    [0x80 ... 0xff] = VALUE,
};

/* A perfect hash over the known names: two names in one slot do not compile (-Woverride-init, -Winitializer-overrides). */
#define SLOT(n, last) (((n) + 25u * (unsigned char)(last)) & 63u)
#define KNOWN(text, last, name) [SLOT(sizeof(text) - 1, last)] = { text, sizeof(text) - 1, name }

static const struct {
    char    text[26];
    uint8_t n;
    uint8_t name;                       /* enum known_name */
} known_names[64] = {
    KNOWN("host", 't', NAME_HOST),
    KNOWN("content-length", 'h', NAME_CONTENT_LENGTH),
    KNOWN("transfer-encoding", 'g', NAME_TRANSFER_ENCODING),
    KNOWN("connection", 'n', NAME_CONNECTION),
    KNOWN("upgrade", 'e', NAME_UPGRADE),
    KNOWN("te", 'e', NAME_TE),
    KNOWN("expect", 't', NAME_EXPECT),
    KNOWN("keep-alive", 'e', NAME_HOP_BY_HOP),
    KNOWN("proxy-connection", 'n', NAME_HOP_BY_HOP),
    KNOWN("proxy-authenticate", 'e', NAME_HOP_BY_HOP),
    KNOWN("proxy-authorization", 'n', NAME_HOP_BY_HOP),
    KNOWN("proxy-authentication-info", 'o', NAME_HOP_BY_HOP),
    KNOWN("trailer", 'r', NAME_HOP_BY_HOP),
    KNOWN("http2-settings", 's', NAME_HOP_BY_HOP),
    KNOWN("via", 'a', NAME_VIA),
    KNOWN("x-forwarded-for", 'r', NAME_X_FORWARDED_FOR),
    KNOWN("forwarded", 'd', NAME_FORWARDED),
    KNOWN("x-real-ip", 'p', NAME_FORWARDED),
    KNOWN("max-forwards", 's', NAME_MAX_FORWARDS),
    KNOWN("sec-websocket-key", 'y', NAME_WEBSOCKET_KEY),
    KNOWN("sec-websocket-accept", 't', NAME_WEBSOCKET_ACCEPT),
};

enum known_name field_name_known(const char *at, size_t n)
{
    const uint32_t slot = SLOT((unsigned)n, at[n - 1] | 0x20);
    if (known_names[slot].n == n && token_equals(at, known_names[slot].text, n))
        return (enum known_name)known_names[slot].name;
    static const char prefix[] = "x-forwarded-";
    if ((at[0] | 0x20) == 'x' && n >= sizeof prefix && token_equals(at, prefix, sizeof prefix - 1))
        return NAME_FORWARDED;
    return NAME_OTHER;
}

int parse_fields(const char *start, const char *p, const char *end, struct http_head *head, struct notes *notes)
{
    uint32_t n = 0;
    notes->n = 0;
    for (;; n++) {
        if (p == end)
            return 0;
        if (*p == '\r')
            break;
        const char *name = p;
        p = scan_token(p, start, end);
        if (p == end)
            return 0;
        if (*p != ':' || p == name)
            return -400;
        if (n == HTTP_FIELDS_MAX)
            return -431;
        struct field *f = &head->fields[n];
        f->name = (struct span){ name, (uint32_t)(p - name) };
        f->kind = FIELD_PASS;
        p++;
        while (p < end && is_blank(*p))
            p++;
        const char *value = p;
        p = scan_value(p, start, end);
        const int line_end = parse_line_end(p, end);
        if (line_end <= 0)
            return line_end;
        const char *value_end = p;
        while (value_end > value && is_blank(value_end[-1]))
            value_end--;
        f->value = (struct span){ value, (uint32_t)(value_end - value) };
        f->plain = value_end == p && value - name == (ptrdiff_t)f->name.n + 2 && value[-1] == ' ';
        p += 2;
        const enum known_name known = field_name_known(name, f->name.n);
        if (known != NAME_OTHER) {
            notes->at[notes->n].name = (uint8_t)known;
            notes->at[notes->n++].field = (uint8_t)n;
        }
    }
    const int line_end = parse_line_end(p, end);
    if (line_end <= 0)
        return line_end;
    head->n_fields = n;
    head->head_bytes = (uint32_t)(p + 2 - start);
    return (int)head->head_bytes;
}

struct span http_field(const struct http_head *head, const char *name, uint32_t n)
{
    for (uint32_t i = 0; i < head->n_fields; i++)
        if (head->fields[i].name.n == n && token_equals(head->fields[i].name.at, name, n))
            return head->fields[i].value;
    return (struct span){ NULL, 0 };
}

bool list_next(struct span *list, struct span *element)
{
    const char *p = list->at, *end = list->at + list->n;
    while (p < end && (is_blank(*p) || *p == ','))
        p++;
    if (p == end)
        return false;
    const char *from = p;
    while (p < end && *p != ',')
        p++;
    const char *to = p;
    while (is_blank(to[-1]))
        to--;
    *element = (struct span){ from, (uint32_t)(to - from) };
    *list = (struct span){ p, (uint32_t)(end - p) };
    return true;
}

bool span_is_token(struct span s)
{
    return s.n > 0 && scan_token(s.at, s.at, s.at + s.n) == s.at + s.n;
}

bool span_equals(struct span s, const char *lower)
{
    return s.n == strlen(lower) && span_is_token(s) && token_equals(s.at, lower, s.n);
}

bool list_holds(struct span list, const char *token)
{
    struct span element;
    while (list_next(&list, &element))
        if (span_equals(element, token))
            return true;
    return false;
}

bool parse_length(struct span value, uint64_t *length)
{
    uint64_t n = 0;
    if (value.n == 0)
        return false;
    for (uint32_t i = 0; i < value.n; i++) {
        if (!is_digit(value.at[i]) || n > (INT64_MAX - 9) / 10)
            return false;
        n = n * 10 + (uint64_t)(value.at[i] - '0');
    }
    *length = n;
    return true;
}

static bool names_equal(struct span a, struct span b)
{
    if (a.n != b.n)
        return false;
    for (uint32_t i = 0; i < a.n; i++) {
        const unsigned char x = (unsigned char)a.at[i], y = (unsigned char)b.at[i];
        if (x != y && !((x ^ y) == 0x20 && (unsigned char)((x | 0x20) - 'a') < 26))
            return false;
    }
    return true;
}

/* A field that Connection names is of this connection alone. */
static void drop_named(struct http_head *head, struct span option)
{
    for (uint32_t i = 0; i < head->n_fields; i++) {
        struct field *f = &head->fields[i];
        if (f->kind == FIELD_PASS && names_equal(f->name, option))
            f->kind = FIELD_DROP;
    }
}

struct connection_options parse_connection(struct http_head *head, const struct notes *notes)
{
    struct connection_options asked = { 0 };
    uint32_t named = 0;
    for (uint32_t i = 0; i < notes->n; i++) {
        if (notes->at[i].name != NAME_CONNECTION)
            continue;
        struct field *f = &head->fields[notes->at[i].field];
        f->kind = FIELD_DROP;
        struct span list = f->value, option;
        while (list_next(&list, &option)) {
            if (span_equals(option, "keep-alive"))
                asked.keep_alive = true;
            else if (span_equals(option, "close") || !span_is_token(option))
                asked.close = true;
            else if (span_equals(option, "upgrade"))
                asked.upgrade = true;
            else if (named++ < HTTP_FIELDS_MAX)
                drop_named(head, option);
            else
                asked.too_many = true;
        }
    }
    return asked;
}
