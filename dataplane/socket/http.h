/* HTTP/1.1 heads and message framing: parse, judge, write anew. Pure functions over bytes: no I/O, no clock, no allocation.
 *
 * RFC 9110 (semantics), RFC 9112 (message syntax). What is ambiguous is refused, never guessed at: two recipients that
 * frame one message differently are how requests are smuggled.
 *
 * Always: a parser gets a length and never reads past it; spans point into the caller's bytes, which must stay in place.
 */
#ifndef VICKREY_HTTP_H
#define VICKREY_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_FIELDS_MAX 100             /* more: 431 */
#define HTTP_HEAD_MAX 16384             /* bytes of a whole head, start line included; more: 431 */
#define HTTP_TARGET_MAX 8192            /* more: 414 */
#define HTTP_METHOD_MAX 32              /* more: 501 */
#define HTTP_HOST_MAX 262               /* a DNS name, a colon and a port; more: 400 */
#define HTTP_WRITE_EXTRA 1024           /* what a head that is written anew may be longer than the received one */

struct span {
    const char *at;
    uint32_t    n;
};

enum http_method {
    HTTP_OTHER = 0, HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_DELETE, HTTP_OPTIONS, HTTP_PATCH, HTTP_CONNECT, HTTP_TRACE
};

/* What one field line is to a proxy. */
enum field_kind {
    FIELD_PASS = 0,                     /* forwarded as it is */
    FIELD_DROP,                         /* hop-by-hop, or named by Connection, or ours to write */
    FIELD_HOST,
    FIELD_CONTENT_LENGTH,               /* responses to HEAD and 304: announced, though no body follows; else FIELD_DROP */
    FIELD_FORWARDED_FOR,                /* X-Forwarded-For; kept from trusted clients only, as is the next */
    FIELD_FORWARDED,                    /* Forwarded, X-Real-IP, the other X-Forwarded-* */
    FIELD_VIA,                          /* forwarded; ours is added after it */
    FIELD_MAX_FORWARDS                  /* OPTIONS and TRACE: forwarded as one less */
};

struct field {
    struct span name, value;            /* value without surrounding blanks */
    uint8_t     kind;                   /* enum field_kind */
    bool        plain;                  /* the line stands in the head exactly as it would be written: "name: value\r\n" */
};

enum framing { FRAME_NONE = 0, FRAME_LENGTH, FRAME_CHUNKED, FRAME_CLOSE /* responses only: until the connection closes */ };

struct http_head {
    /* start line */
    uint8_t     method;                 /* enum http_method (requests) */
    uint8_t     minor;                  /* HTTP/1.minor, 0 or 1 (a higher minor is taken as 1) */
    uint16_t    status;                 /* responses */
    struct span method_name;            /* requests */
    struct span target;                 /* requests: as received, absolute-form reduced to origin-form (authority -> host).
                                           Of "http://host?query" it is "?query": the writer puts the slash */
    struct span reason;                 /* responses */
    struct span host;                   /* requests: Host, or the authority of an absolute-form target */
    /* framing of the body that follows */
    uint8_t     framing;                /* enum framing */
    uint64_t    length;                 /* FRAME_LENGTH; or what a bodiless response announces */
    /* connection */
    bool        keep_alive;             /* the peer may reuse the connection after this message */
    bool        expect_continue;
    bool        upgrade_websocket;      /* request: asks for websocket well-formed (GET, 1.1, Connection: upgrade, Upgrade: websocket);
                                           response: 101 that agrees to it */
    bool        has_via, has_trailer_te;/* TE: trailers */
    struct span websocket_key;          /* request's Sec-WebSocket-Key / response's Sec-WebSocket-Accept */
    uint32_t    n_fields;
    uint32_t    head_bytes;             /* of the head, its empty line included */
    struct field fields[HTTP_FIELDS_MAX];
};

/* Parse one head from the n bytes at buf. Leading empty lines (CRLF, at most 4 bytes' worth) before a request are skipped
 * and counted in head_bytes.
 * > 0: bytes of the head; 0: not yet whole (give more bytes; more can only matter when an LF came); < 0: minus the status to
 * answer (400, 414, 417, 431, 501, 505; 200: an OPTIONS that may go no further, RFC 9110, 7.6.2). */
int http_parse_request(const char *buf, size_t n, struct http_head *head);

/* The same for a response to a request of this method. 1xx are heads of their own (framing NONE).
 * < 0: the response is not to be forwarded (the caller answers 502). */
int http_parse_response(const char *buf, size_t n, enum http_method request_method, struct http_head *head);

/* Value of the first field of this name, given in lower case, n bytes of it; an empty span when there is none. */
struct span http_field(const struct http_head *head, const char *name, uint32_t n);

/* What is added to a forwarded request. */
struct forward {
    struct span client;                 /* client address as text, for X-Forwarded-For */
    bool        append;                 /* the client is a trusted proxy: append to its X-Forwarded-*; else replace them */
    bool        https;                  /* X-Forwarded-Proto; false: http */
    struct span default_host;           /* Host when an HTTP/1.0 client sent none: the server's address, say; may be empty */
};

/* Write the request head anew, as it goes to the server: HTTP/1.1, hop-by-hop fields dropped, Via and X-Forwarded-* added,
 * framing written from head->framing and ->length (so it cannot disagree), Upgrade only for websocket.
 * Returns bytes written, or 0 when room is too small. head->head_bytes + HTTP_WRITE_EXTRA bytes of room are enough. */
size_t http_write_request(const struct http_head *head, const struct forward *forward, char *out, size_t room);

/* Write the response head anew, as it goes to the client. keep_alive: whether the client's connection stays open;
 * client_minor: the client's HTTP/1.x (0: a chunked body must be sent decoded, until close: pass FRAME_CLOSE in framing).
 * framing: how the body is framed to the client. */
size_t http_write_response(const struct http_head *head, bool keep_alive, unsigned client_minor, enum framing framing,
                           char *out, size_t room);

/* A whole response made here (400, 408, 431, 502, 503, 504, …), with a short text body (none for HEAD), Connection: close or keep-alive.
 * retry_after_s: 0: no such field. */
size_t http_write_error(unsigned status, bool keep_alive, bool head_only, unsigned retry_after_s, char *out, size_t room);

/* Is b the Sec-WebSocket-Accept that answers key (RFC 6455, 4.2.2)? */
bool http_websocket_agrees(struct span key, struct span accept);

/* Incremental reader of a chunked body. Extensions are dropped, trailer fields checked as a head's are and dropped
 * unless the caller asks for them: when last turns true and done is false, trailer fields follow, and a caller that wants them
 * sets trailer and trailer_room before the next call. What is kept stands there at the end as field lines, CRLF included,
 * to be sent between "0\r\n" and "\r\n"; a field that may not be a trailer, or for which there is no room, is left out. */
struct chunked {
    uint64_t left;                      /* data bytes of the current chunk still to come */
    uint32_t state;                     /* private */
    uint32_t line_bytes;                /* bytes of the current line: bounds extensions */
    uint32_t trailer_bytes;             /* of the trailer section so far: bounds it */
    bool     done;                      /* the last chunk and the trailer section were read */
    bool     last;                      /* the last chunk was read, not yet the trailer section */
    char    *trailer;                   /* the caller's, or NULL */
    uint32_t trailer_room, trailer_n;   /* bytes it holds; bytes kept */
    uint32_t line_at;                   /* private */
};

void chunked_begin(struct chunked *c);

/* Take bytes from buf. Consumes at least one byte (n > 0) or fails. Data of the body, when some was reached, is the span *data
 * inside buf (n 0: none this time). Call again with the rest until it consumed all or c->done.
 * > 0: bytes consumed; -1: malformed (bad size, missing CRLF, too long extensions or trailers): close, never forward. */
int64_t chunked_read(struct chunked *c, const char *buf, size_t n, struct span *data);

/* Write the line that opens a chunk of n > 0 bytes ("1a\r\n"), at most 18 bytes. After the data comes "\r\n"; the end of the
 * body is "0\r\n\r\n". Returns bytes written. */
size_t chunked_write_size(uint64_t n, char *out);

#endif
