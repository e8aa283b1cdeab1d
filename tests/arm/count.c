/* A qemu plugin that counts guest instructions: -plugin count.so,out=PATH.
 *
 * PATH becomes 4096 bytes that qemu maps shared; the guest maps it too and reads it at any moment (guest_counter.py).
 * u64 [0] instructions, [1] loads and stores, [2] SIMD and floating point, [3] translated blocks run,
 * [4] SDOT and UDOT. The sums are not atomic: one busy thread. The plugin API (version 1) is declared here, so that no
 * header of qemu is needed. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct block;
struct instruction;
enum { ADD_U64 = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);

EXPORT int qemu_plugin_version = 1;
static uint64_t *counts;

static int is_dot_product(uint32_t word) {
    return (word & 0x9f20fc00) == 0x0e009400 || (word & 0x9f00f400) == 0x0f00e000;
}

/* Once a block of guest code is translated: the counts to add whenever it runs. */
static void translated(plugin_id id, struct block *block) {
    uint64_t add[5] = {qemu_plugin_tb_n_insns(block), 0, 0, 1, 0};
    for (size_t i = 0; i < add[0]; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), 4);
        unsigned group = (word >> 25) & 15; /* op0 of the A64 encoding */
        if ((group & 5) == 4)
            add[1]++;
        else if ((group & 7) == 7) {
            add[2]++;
            add[4] += is_dot_product(word);
        }
    }
    for (int i = 0; i < 5; i++)
        if (add[i])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &counts[i], add[i]);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    const char *path = NULL;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            path = argv[i] + 4;
    int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    if (file < 0 || ftruncate(file, 4096)) {
        fprintf(stderr, "count: out=PATH is wanted, a file that can be written\n");
        return -1;
    }
    counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (counts == MAP_FAILED)
        return -1;
    memset(counts, 0, 4096);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
