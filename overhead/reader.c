/* The floor: a bare closed-loop reader. epoll, recv, one stamp a read, HTTP chunks counted; no JSON.

   reader --port P [--streams 1] [--requests 100] [--warmup 0] [--chunks 66] [--stamps kernel|user] [--cpu N]
          [--out FILE]

   Each stream keeps one connection and sends its next request when its last answer has ended. The warm-up is drained
   before the measured requests begin. --chunks: room for that many stamps a request (tokens + 2).
   --stamps kernel: recvmsg with SO_TIMESTAMPNS, the arrival of the last segment that the read took; user: recv, then
   the clock. A chunk's stamp is that of the read that brought its end; it is written negative when a later chunk ended
   in the same read, for then it is that chunk's stamp.

   Prints one line: chunks, seconds from the first send to the last end, processor seconds meanwhile (user, system),
   reads. FILE, int64: realtime - monotonic at start and at end, fields of a request (F), chunks, then for each request
   F + chunks numbers: the server's number (from the answer's id), stream, clock before and after the request's send(),
   first chunk, end, chunks, 1 for a warm-up; then the stamps. All are CLOCK_MONOTONIC. Exit 1, and why, unless every
   answer was whole. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FIELDS 8
#define STREAMS_MAX 1024
#define READ_BYTES 65536

enum place { HEAD, SIZE, SIZE_END, DATA, DATA_END, TRAILER };

struct stream {
    int fd, zero;
    enum place place;
    unsigned matched; /* bytes of "\r\n\r\n" seen at the end of what came */
    int64_t left, *record;
};

static struct stream streams[STREAMS_MAX];
static int64_t streams_wanted = 1, requests = 100, warmup, chunks_max = 66, kernel_stamps = 1, offset_ns, width;
static int64_t sent_count, ended_count, phase_end, chunk_count, read_count, *records;
static char request[2048];
static size_t request_len;
static int epoll_fd;

static int64_t clock_ns(clockid_t id) {
    struct timespec at;
    clock_gettime(id, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static int64_t realtime_offset_ns(void) {
    int64_t best = INT64_MAX, offset = 0;
    for (int i = 0; i < 1000; i++) {
        int64_t before = now_ns(), real = clock_ns(CLOCK_REALTIME), after = now_ns();
        if (after - before < best) best = after - before, offset = real - (before + after) / 2;
    }
    return offset;
}

static void die(const char *what) { fprintf(stderr, "reader: %s: %s\n", what, strerror(errno)), exit(1); }
static void wrong(const char *what) { fprintf(stderr, "reader: %s\n", what), exit(1); }

static void ask(struct stream *s) {
    s->record = records + sent_count * width;
    s->record[0] = -1, s->record[1] = s - streams, s->record[7] = sent_count < warmup;
    sent_count++;
    s->place = HEAD, s->matched = 0;
    s->record[2] = now_ns();
    if (send(s->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) die("send");
    s->record[3] = now_ns();
}

/* A chunk's data has begun: the first one's id names the request. */
static void number_from(struct stream *s, const char *data, size_t len) {
    static const char mark[] = "\"id\":\"cmpl-";
    const char *at = memmem(data, len, mark, sizeof mark - 1);
    if (at && len - (size_t)(at - data) >= sizeof mark + 8) s->record[0] = strtoll(at + sizeof mark - 1, NULL, 16);
}

/* Walk through one read. Returns 1 when the answer has ended. */
static int walk(struct stream *s, const char *data, size_t len, int64_t stamp_ns) {
    const char *at = data, *end = data + len;
    int64_t *record = s->record, *last = NULL;
    while (at < end) switch (s->place) {
        case HEAD:
            s->matched = *at == "\r\n\r\n"[s->matched] ? s->matched + 1 : *at == '\r';
            at++;
            if (s->matched == 4) s->place = SIZE, s->left = 0;
            break;
        case SIZE:
            if (*at == '\r') s->place = SIZE_END;
            else s->left = s->left * 16 + (*at <= '9' ? *at - '0' : (*at | 32) - 'a' + 10);
            at++;
            break;
        case SIZE_END:
            at++, s->zero = s->left == 0, s->left += 2;
            s->place = s->zero ? TRAILER : DATA;
            if (!s->zero && record[6] == 0 && record[0] < 0) number_from(s, at, (size_t)(end - at));
            break;
        case DATA: {
            int64_t part = end - at < s->left ? end - at : s->left;
            at += part, s->left -= part;
            if (s->left) break;
            if (record[6] >= chunks_max) wrong("more chunks in an answer than --chunks");
            if (last) *last = -*last;
            last = record + FIELDS + record[6]++, *last = stamp_ns;
            if (record[6] == 1) record[4] = stamp_ns;
            s->place = SIZE, s->left = 0, chunk_count++;
            break;
        }
        default: /* TRAILER: the empty line after the last chunk */
            at++;
            if (--s->left) break;
            if (at != end) wrong("bytes after the end of an answer");
            record[5] = stamp_ns;
            return 1;
        }
    return 0;
}

static ssize_t receive(struct stream *s, char *data, int64_t *stamp_ns) {
    char control[256];
    struct iovec part = {data, READ_BYTES};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (!kernel_stamps) {
        ssize_t got = recv(s->fd, data, READ_BYTES, MSG_DONTWAIT);
        *stamp_ns = now_ns();
        return got;
    }
    ssize_t got = recvmsg(s->fd, &message, MSG_DONTWAIT);
    *stamp_ns = 0;
    for (struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec at;
            memcpy(&at, CMSG_DATA(c), sizeof at);
            *stamp_ns = at.tv_sec * 1000000000LL + at.tv_nsec - offset_ns;
        }
    if (got > 0 && !*stamp_ns) wrong("a read without the kernel's stamp");
    return got;
}

static void read_once(struct stream *s) {
    static char data[READ_BYTES];
    int64_t stamp_ns;
    ssize_t got = receive(s, data, &stamp_ns);
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0) die("recv");
    if (got == 0) wrong("the server hung up");
    read_count++;
    if (!walk(s, data, (size_t)got, stamp_ns)) return;
    ended_count++;
    if (sent_count < phase_end) ask(s);
}

static void offer(int64_t until) {
    struct epoll_event events[STREAMS_MAX];
    phase_end = until;
    for (int64_t i = 0; i < streams_wanted && sent_count < phase_end; i++) ask(&streams[i]);
    while (ended_count < phase_end) {
        int ready = epoll_wait(epoll_fd, events, STREAMS_MAX, 10000);
        if (ready == 0) wrong("nothing came for 10 s");
        for (int i = 0; i < ready; i++) read_once(events[i].data.ptr);
    }
}

static double seconds_of(struct timeval at) { return (double)at.tv_sec + (double)at.tv_usec / 1e6; }

int main(int argc, char **argv) {
    const char *out = NULL;
    int64_t cpu = -1, port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        int64_t value = strtoll(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--port")) port = value;
        else if (!strcmp(argv[i], "--streams")) streams_wanted = value;
        else if (!strcmp(argv[i], "--requests")) requests = value;
        else if (!strcmp(argv[i], "--warmup")) warmup = value;
        else if (!strcmp(argv[i], "--chunks")) chunks_max = value;
        else if (!strcmp(argv[i], "--stamps")) kernel_stamps = !strcmp(argv[i + 1], "kernel");
        else if (!strcmp(argv[i], "--cpu")) cpu = value;
        else if (!strcmp(argv[i], "--out")) out = argv[i + 1];
        else return fprintf(stderr, "reader: %s is not an option of mine; its comment lists them\n", argv[i]), 2;
    }
    int64_t all = warmup + requests;
    if (argc % 2 == 0 || streams_wanted < 1 || streams_wanted > STREAMS_MAX || warmup < 0 || requests < 1 ||
        all > 1000000 || chunks_max < 1 || chunks_max > 100000)
        return fprintf(stderr, "reader: options come in pairs; streams 1..1024, requests 1..1000000\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* not to outlive a bench that was killed */
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0 && (CPU_SET((int)cpu, &set), sched_setaffinity(0, sizeof set, &set))) die("--cpu");
    width = FIELDS + chunks_max;
    records = malloc(sizeof *records * (size_t)(width * all));
    if (!records) die("records");
    memset(records, 0, sizeof *records * (size_t)(width * all)); /* no page fault while it is timed */
    static const char body[] = "{\"model\":\"pacer\",\"prompt\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],\"max_tokens\":64,"
                               "\"temperature\":0,\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
    request_len = (size_t)snprintf(request, sizeof request,
                                   "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:%lld\r\nContent-Type: "
                                   "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                                   (long long)port, sizeof body - 1, body);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int64_t i = 0; i < streams_wanted; i++) {
        int on = 1, fd = streams[i].fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &streams[i]};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (kernel_stamps) setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
    offset_ns = realtime_offset_ns();
    offer(warmup);
    struct rusage begun, ended;
    chunk_count = read_count = 0;
    getrusage(RUSAGE_SELF, &begun);
    int64_t begun_ns = now_ns();
    offer(all);
    int64_t ended_ns = now_ns();
    getrusage(RUSAGE_SELF, &ended);
    printf("chunks %lld seconds %.6f user %.6f system %.6f reads %lld\n", (long long)chunk_count,
           (double)(ended_ns - begun_ns) / 1e9, seconds_of(ended.ru_utime) - seconds_of(begun.ru_utime),
           seconds_of(ended.ru_stime) - seconds_of(begun.ru_stime), (long long)read_count);
    if (!out) return 0;
    int64_t head[4] = {offset_ns, realtime_offset_ns(), FIELDS, chunks_max};
    FILE *file = fopen(out, "wb");
    if (!file || fwrite(head, sizeof head, 1, file) != 1) die(out);
    if (fwrite(records, sizeof *records * (size_t)width, (size_t)all, file) != (size_t)all) die(out);
    if (fclose(file)) die(out);
    return 0;
}
