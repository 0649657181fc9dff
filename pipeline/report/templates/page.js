// Lays one layer of each region over its image, as far as its slider says. Without a script all layers are shown.
document.documentElement.classList.add("live");

for (const gallery of document.querySelectorAll("[data-gallery]")) {
  const choose = () => {
    const chosen = gallery.querySelector("input[type=radio]:checked");
    const name = chosen.nextElementSibling.textContent;
    for (const stage of gallery.querySelectorAll(".stage")) {
      let found = false;
      for (const layer of stage.querySelectorAll("[data-layer]")) {
        const shown = layer.dataset.layer === chosen.value;
        layer.classList.toggle("over", shown);
        found ||= shown;
      }
      const absent = stage.querySelector(".absent");
      absent.hidden = found;
      absent.textContent = found ? "" : `no ${name} yet`;
    }
  };
  for (const radio of gallery.querySelectorAll("input[type=radio]")) radio.addEventListener("change", choose);
  for (const wipe of gallery.querySelectorAll(".wipe")) {
    const pull = () => wipe.parentElement.style.setProperty("--covered", `${wipe.value}%`);
    wipe.addEventListener("input", pull);
    pull();
  }
  choose();
}

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const [id, link] of links) link.toggleAttribute("aria-current", id === entry.target.id);
    }
  },
  { rootMargin: "-15% 0px -80% 0px" },
);
for (const section of document.querySelectorAll("main > section")) seen.observe(section);
