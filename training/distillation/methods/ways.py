"""Cards of what can be done with any method that asks for logits."""

from training.distillation.methods.base import Card

WAYS = (
    Card(
        name="--teacher.only_right",
        title="True-label distillation",
        what="The student listens to the teacher only where its first choice is the label; of the other images it "
        "hears the labels' share of the loss alone.",
        formula="as the method, over the images where argmax(t) = label; the others add 0",
        source="The competition's team (there 0.472 against 0.466 of plain kd).",
        when="With a weak teacher, or with data that it has not learned from: on its own training data it is hardly "
        "ever wrong.",
    ),
    Card(
        name="--method.balanced true",
        title="Balanced distillation",
        what="Each image counts in the method as --loss.class_balance lets its class count in the labels' share. "
        "Without it the labels' (1 - alpha) is all that lifts rare classes: macro F1 can fall while accuracy rises.",
        formula="as the method, each image times the weight of its class: n_class ** -class_balance, scaled to a mean "
        "of 1",
        source="The idea of Zhang et al., Balanced Knowledge Distillation for Long-tailed Learning (arXiv 2104.10510), "
        "who weigh the teacher's classes; here images are weighed, as the labels' share does it.",
        when="Where classes are of very different sizes, with alpha near 1.",
    ),
    Card(
        name="--teacher.paths A,B",
        title="Several teachers",
        what="--teacher.combine mean averages their probabilities at the temperature, weighted does so with "
        "--teacher.weights.",
        formula="t = T · log Σ w_i softmax(t_i / T)",
        source="You et al., Learning from Multiple Teacher Networks, KDD 2017; the competition's best student had two.",
        when="Where there is more than one teacher anyway: runs with other seeds or of other architectures.",
    ),
    Card(
        name="--teacher.combine best",
        title="The best of several teachers",
        what="For each image the student listens to one of --teacher.paths A,B alone: the teacher whose loss on the "
        "label is the smallest.",
        formula="t = t_i with i = argmin CE(t_i, label)",
        source="The hard limit of Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022 "
        "(arXiv 2201.00007), who weigh teachers by that loss.",
        when="With a second teacher: of all methods it gave mobilenetv3_small_050 the most on TrashNet, where the "
        "second was the first with another seed. Not where all of them miss the rare classes.",
    ),
    Card(
        name="--chain B",
        title="Teacher chain",
        what="The teacher teaches network B, and B the student: each link is a run of its own below --out, with the "
        "same options.",
        formula="as the method, link by link",
        source="Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020 (arXiv 1902.03393).",
        when="Where the student is far smaller than the teacher. Costs the training of every link.",
    ),
)
