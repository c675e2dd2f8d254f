// Where a run's problems come from: lists of different ones, and what names a problem.
#include <stdlib.h>
#include <string.h>

#include "test.h"
#include "text/source.h"

static int compare_texts(const void* a, const void* b) { return strcmp(a, b); }

static int compare_prompts(const void* a, const void* b) {
    return strcmp(((const problem*)a)->prompt, ((const problem*)b)->prompt);
}

// The prompts of an evaluation differ; they are the first ones by number; a task that has fewer
// gives all that many draws find.
static void test_held_out_lists(void) {
    enum { WANTED = 3000, DRAWS = 200000, WIDTH = 32 };
    static const char* const specs[] = {"chain", "add:digits=2", "chain:operands=2",
                                        "countdown:numbers=2,largest=2"};
    static const int all[] = {1, 0, 0, 0};  // whether there are as many as are wanted
    char(*drawn)[WIDTH] = xalloc(DRAWS, WIDTH, "prompts");
    for (int k = 0; k < 4; k++) {
        source t = source_of_task(specs[k]);
        problem_list list = source_held_out(&t, 4, WANTED);
        char prompt[TASK_TEXT_MAX];
        int distinct = 1, order = 0;
        for (uint32_t i = 0; i < DRAWS; i++) {
            task_held_out_prompt(&t.task, 4, i, prompt);
            strcpy(drawn[i], prompt);
            if (order < list.count && !strcmp(list.item[order].prompt, prompt)) order++;
        }
        qsort(drawn, DRAWS, WIDTH, compare_texts);
        for (int i = 1; i < DRAWS; i++) distinct += strcmp(drawn[i], drawn[i - 1]) != 0;
        CHECK(list.count == (all[k] ? WANTED : distinct), "%s: %d prompts, %d by many draws",
              specs[k], list.count, distinct);
        CHECK(order == list.count, "%s: prompt %d of the list is out of order", specs[k], order);
        qsort(list.item, (size_t)list.count, sizeof *list.item, compare_prompts);
        for (int i = 1; i < list.count; i++)
            CHECK(strcmp(list.item[i].prompt, list.item[i - 1].prompt), "%s: %s twice", specs[k],
                  list.item[i].prompt);
        problem_list few = source_held_out(&t, 4, 1);
        CHECK(few.count == 1, "%s: %d prompts, not one", specs[k], few.count);
        problem_list_free(&few);
        problem_list_free(&list);
    }
    free(drawn);
}

int main(void) {
    test_held_out_lists();
    return test_report();
}
