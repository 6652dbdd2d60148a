/* Rounds of random farms and tasks through round_auction(), for the sanitizers; checks what must hold whatever the numbers. */
#include "dataplane/auction/rounds.h"
#include "dataplane/core/rng.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVERS 13
#define TASKS 40
#define REQUIRE(condition)                                                      \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
            return 1;                                                           \
        }                                                                       \
    } while (0)

static double up_to(struct rng *rng, double most)
{
    return (double)rng_unit(rng) * most;
}

int main(void)
{
    struct rng rng;
    rng_seed(&rng, 7);
    for (int trial = 0; trial < 3000; trial++) {
        uint32_t n = 1 + rng_below(&rng, SERVERS);
        /* Exactly as long as promised, so that a step beyond is seen. */
        double *memory = malloc(12 * n * sizeof *memory);
        uint32_t *words = malloc(2 * n * sizeof *words);
        REQUIRE(memory && words);
        double *capacity = memory, *sensitivity = memory + n, *risk = memory + 2 * n, *target = memory + 3 * n;
        double *neural = memory + 4 * n, *rate = memory + 5 * n, *load = memory + 6 * n;
        double before = 0.0, after = 0.0, work = 0.0;
        for (uint32_t i = 0; i < n; i++) {
            capacity[i] = 1.0 + up_to(&rng, 200.0);
            sensitivity[i] = up_to(&rng, 100.0);
            risk[i] = up_to(&rng, 2.0);
            target[i] = up_to(&rng, 1.0);
            neural[i] = 0.9 + up_to(&rng, 0.2);
            rate[i] = 0.5 + up_to(&rng, 20.0);
            load[i] = up_to(&rng, 2.0) * capacity[i];
            words[i] = rng_below(&rng, 3);
            words[n + i] = 1 + rng_below(&rng, 1u << 30);
            before += load[i];
        }
        struct round_farm farm = {
            .servers = n, .split = rng_below(&rng, 2), .partners = rng_below(&rng, ROUND_PARTNERS + 1),
            .classes = rng_below(&rng, 2), .deferrals = rng_below(&rng, 3), .reserve = up_to(&rng, 60.0),
            .noise = rng_below(&rng, 2) ? 0.5 : 0.0, .overload = 0.6, .partner_below = 0.5,
            .capacity = capacity, .sensitivity = sensitivity, .risk_aversion = risk, .target = target, .neural = neural,
            .rate = rate, .load = load, .coalition = words, .lanes = words + n, .scratch = memory + 7 * n,
        };
        memcpy(farm.random, rng.s, sizeof farm.random);
        uint32_t m = rng_below(&rng, TASKS);
        struct round_task tasks[TASKS];
        struct round_award awards[TASKS];
        struct round_sums sums = { 0 };
        for (uint32_t i = 0; i < m; i++)
            tasks[i] = (struct round_task){ .load = up_to(&rng, 30.0), .work = up_to(&rng, 30.0), .latency = up_to(&rng, 9.0),
                                            .waited = rng_below(&rng, 4), .sla = rng_below(&rng, 3),
                                            .deferrals = rng_below(&rng, 4) };
        REQUIRE(round_auction(&farm, tasks, m, awards, &sums) == 0);
        for (uint32_t i = 0; i < m; i++) {
            const struct round_award *a = &awards[i];
            REQUIRE(a->price >= a->bid && a->bid >= 0.0 && a->bid <= 1000.0);
            REQUIRE((a->server == ROUND_NOBODY) == ((a->flags & ROUND_DEFERRED) != 0));
            if (a->server == ROUND_NOBODY)
                continue;
            double shares = 0.0;
            for (uint32_t p = 0; p <= a->partners; p++)
                shares += a->share[p];
            REQUIRE(fabs(shares - 1.0) < 1e-9 && a->server < n && a->completion >= tasks[i].waited);
            work += tasks[i].work;
        }
        for (uint32_t i = 0; i < n; i++)
            after += load[i];
        REQUIRE(fabs(before + work - after) < 1e-6 * (1.0 + after));
        REQUIRE(sums.auctions[0] + sums.auctions[1] + sums.auctions[2] == m);
        REQUIRE(sums.awards[0] + sums.awards[1] + sums.awards[2] + sums.deferred == m);
        farm.partners = ROUND_PARTNERS + 1;
        REQUIRE(round_auction(&farm, tasks, m, awards, &sums) == -EINVAL);
        free(memory);
        free(words);
    }
    puts("ok");
    return 0;
}
