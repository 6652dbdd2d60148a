/* What one head costs: parsed, judged and written anew, in nanoseconds and instructions.
 *
 * Built and run by http_parse.py. Instructions need the kernel's leave (perf_event_paranoid); without it they are left out.
 */
#include "dataplane/socket/http.h"

#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char wrk[] = "GET /index.html?d=1.25 HTTP/1.1\r\n"
                          "Host: 127.0.0.1:8080\r\n"
                          "User-Agent: wrk/4.1.0-bench\r\n"
                          "Accept: application/json, */*\r\n\r\n";

static const char browser[] =
    "GET /assets/app.4f2c1d.js HTTP/1.1\r\n"
    "Host: shop.example.com\r\n"
    "Connection: keep-alive\r\n"
    "sec-ch-ua: \"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\"\r\n"
    "sec-ch-ua-mobile: ?0\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36\r\n"
    "sec-ch-ua-platform: \"Linux\"\r\n"
    "Accept: */*\r\n"
    "Sec-Fetch-Site: same-origin\r\n"
    "Sec-Fetch-Mode: no-cors\r\n"
    "Sec-Fetch-Dest: script\r\n"
    "Referer: https://shop.example.com/cart\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    "Cookie: session=0a1b2c3d4e5f60718293a4b5c6d7e8f9; theme=dark\r\n\r\n";

static const char response[] = "HTTP/1.1 200 OK\r\n"
                               "Content-Type: text/plain; charset=utf-8\r\n"
                               "Content-Length: 128\r\n"
                               "Date: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
                               "Server: Python/3.11 aiohttp/3.11\r\n\r\n";

static int instructions_open(void)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_HARDWARE, .size = sizeof attr, .config = PERF_COUNT_HW_INSTRUCTIONS, .exclude_kernel = 1
    };
    return (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t count(int fd)
{
    uint64_t n = 0;
    return fd >= 0 && read(fd, &n, sizeof n) == sizeof n ? n : 0;
}

enum task { PARSE_REQUEST, PROXY_REQUEST, PARSE_RESPONSE, PROXY_RESPONSE };

static size_t once(enum task task, const char *head_bytes, size_t n)
{
    static struct http_head head;
    static char out[HTTP_HEAD_MAX + HTTP_WRITE_EXTRA];
    const struct forward forward = { .client = { "127.0.0.1", 9 } };
    const int got = task <= PROXY_REQUEST ? http_parse_request(head_bytes, n, &head)
                                          : http_parse_response(head_bytes, n, HTTP_GET, &head);
    if (got <= 0)
        abort();
    if (task == PROXY_REQUEST)
        return http_write_request(&head, &forward, out, sizeof out);
    if (task == PROXY_RESPONSE)
        return http_write_response(&head, true, 1, FRAME_LENGTH, out, sizeof out);
    return (size_t)got;
}

/* The best of several rounds: what disturbs a run only ever makes it slower. */
static void measure(const char *name, enum task task, const char *bytes, size_t n, uint32_t repeat, int fd)
{
    double best_ns = 1e18, best_instructions = 1e18;
    size_t written = 0;
    for (int round = 0; round < 15; round++) {
        const uint64_t from = now_ns(), instructions = count(fd);
        for (uint32_t i = 0; i < repeat; i++)
            written += once(task, bytes, n);
        const double ns = (double)(now_ns() - from) / repeat, used = (double)(count(fd) - instructions) / repeat;
        best_ns = ns < best_ns ? ns : best_ns;
        best_instructions = used < best_instructions ? used : best_instructions;
    }
    printf("%-34s %5zu bytes  %7.1f ns", name, n, best_ns);
    if (best_instructions > 0)
        printf("  %7.0f instructions", best_instructions);
    printf("%s", written ? "\n" : "");
}

int main(int argc, char **argv)
{
    const uint32_t repeat = argc > 1 ? (uint32_t)atoi(argv[1]) : 200000;
    const int fd = instructions_open();
    measure("wrk request, parse", PARSE_REQUEST, wrk, sizeof wrk - 1, repeat, fd);
    measure("wrk request, parse and write", PROXY_REQUEST, wrk, sizeof wrk - 1, repeat, fd);
    measure("browser request, parse", PARSE_REQUEST, browser, sizeof browser - 1, repeat, fd);
    measure("browser request, parse and write", PROXY_REQUEST, browser, sizeof browser - 1, repeat, fd);
    measure("response, parse", PARSE_RESPONSE, response, sizeof response - 1, repeat, fd);
    measure("response, parse and write", PROXY_RESPONSE, response, sizeof response - 1, repeat, fd);
    return 0;
}
