/* The tasks of one round, auctioned one after another: the seed's mechanism for the round-based simulation, in double precision.
 *
 * The white paper, sections 4 and 7.3 … 7.4; controlplane/auction/mechanism.py has the equations and rounds.py what happens
 * between rounds. Each assignment changes the winner's next bid, so tasks cannot be auctioned all at once; servers can.
 */
#ifndef VICKREY_AUCTION_ROUNDS_H
#define VICKREY_AUCTION_ROUNDS_H

#include <stdint.h>

/* cdef:begin */
#define ROUND_PARTNERS 7
#define ROUND_NOBODY 0xffffffff
#define ROUND_CLASSES 3

enum round_class { ROUND_GOLD, ROUND_SILVER, ROUND_BRONZE };

enum round_split { ROUND_SPLIT_EQUAL, ROUND_SPLIT_SHAPLEY };

enum round_flag {
    ROUND_ABOVE = 1,     /* the winning bid exceeds the reserve */
    ROUND_COALITION = 2, /* the task was split */
    ROUND_DEFERRED = 4,  /* nobody got it: it comes again next round */
    ROUND_OUTBID = 8,    /* gold: the lowest bidder would have been late, the lowest bidder in time won */
    ROUND_LATE = 16,     /* awarded, and completed after its latency requirement */
};

/* One task; times in rounds. The bid sees load; a server must do work = load x complexity. */
struct round_task {
    double load;
    double work;
    double latency; /* greatest time to completion that is no miss */
    double waited;  /* since it arrived */
    uint32_t sla;   /* enum round_class */
    uint32_t deferrals;
};

/* What became of a task. share[0] is the winner's part of the work, share[1 + p] partner p's; they sum to 1. */
struct round_award {
    double bid;
    double price;      /* second-lowest bid; infinite when only one was asked */
    double completion; /* rounds from arrival until the last part is done */
    double share[ROUND_PARTNERS + 1];
    uint32_t server; /* ROUND_NOBODY: deferred */
    uint32_t partner[ROUND_PARTNERS];
    uint32_t partners;
    uint32_t flags; /* enum round_flag */
};

/* Sums over the tasks of a round; per class where there is an index. */
struct round_sums {
    double bids;
    double prices; /* of auctions with a second bid */
    double completions[ROUND_CLASSES];
    uint32_t auctions[ROUND_CLASSES];
    uint32_t awards[ROUND_CLASSES];
    uint32_t misses[ROUND_CLASSES];
    uint32_t deferred;
    uint32_t outbid;
    uint32_t above[ROUND_CLASSES]; /* awarded above the reserve */
    uint32_t coalitions;
    uint32_t normal; /* awarded with no flag but LATE */
    uint32_t priced; /* auctions in prices */
};

/* The servers and the rules. Arrays have one element a server and belong to the caller. */
struct round_farm {
    uint32_t servers;
    uint32_t split;         /* enum round_split */
    uint32_t partners;      /* greatest number of partners of a winner; at most ROUND_PARTNERS */
    uint32_t classes;       /* 0: SLA classes are ignored but for statistics */
    uint32_t deferrals;     /* a bronze task is deferred so often at most */
    uint32_t reserved;
    double reserve;         /* 0: none */
    double noise;           /* the random part of a bid is uniform in [0, noise) */
    double overload;
    double partner_below;
    const double *capacity;
    const double *sensitivity;
    const double *risk_aversion;
    const double *target;
    const double *neural;
    const double *rate;         /* work done in a round */
    const uint32_t *coalition;
    double *load;
    uint32_t *lanes;            /* random state of each server's noise; none is 0 */
    double *scratch;            /* 5 x servers */
    uint64_t random[4];         /* for lots between equal bids */
};

/* Auction n tasks in their order; results in awards, sums added to *sums. Loads grow by what is assigned.
 * Always: no allocation, no clock; the same input gives the same result. Returns 0, or -EINVAL for a farm without servers,
 * too many partners or a class that is none.
 */
int round_auction(struct round_farm *farm, const struct round_task *tasks, uint32_t n, struct round_award *awards,
                  struct round_sums *sums);
/* cdef:end */

#endif
