"use strict";
// Plays the videos of one prompt together: one clock moves them all, so they cannot drift apart.
(() => {
  const root = document.getElementById("player");
  if (!root) return;
  const panels = [...document.querySelectorAll("[data-prompt]")];
  const slider = root.querySelector("input[type=range]");
  const button = root.querySelector("button");
  const clock = root.querySelector(".clock");
  const select = root.querySelector("select");
  let playing = false, length = 0, now = 0, begun = 0, videos = [];
  root.hidden = false;
  const frame = 1 / Number(root.dataset.fps);

  function show(time) {
    now = time;
    for (const video of videos) {
      const end = (video.duration || length) - frame / 2;
      video.currentTime = Math.max(0, Math.min(time + frame / 2, end));
    }
    slider.value = length ? String(Math.round(1000 * time / length)) : "0";
    clock.textContent = `${time.toFixed(2)} of ${length.toFixed(2)} s`;
  }
  function measure() {
    length = Math.max(0, ...videos.map((video) => video.duration || 0));
    show(Math.min(now, length));
  }
  function choose(prompt) {
    for (const panel of panels) panel.hidden = panel.dataset.prompt !== prompt;
    videos = panels.filter((panel) => !panel.hidden).flatMap((panel) => [...panel.querySelectorAll("video")]);
    for (const video of videos) video.addEventListener("loadedmetadata", measure);
    measure();
  }
  function tick(moment) {
    if (!playing) return;
    const time = length ? ((moment - begun) / 1000) % length : 0;
    if (Math.floor(time / frame) !== Math.floor(now / frame)) show(Math.floor(time / frame) * frame);
    requestAnimationFrame(tick);
  }
  function play(wanted) {
    playing = wanted;
    button.textContent = playing ? "Pause" : "Play all";
    if (playing) requestAnimationFrame((moment) => { begun = moment - 1000 * now; tick(moment); });
  }
  for (const panel of panels) for (const video of panel.querySelectorAll("video")) video.controls = false;
  slider.addEventListener("input", () => { play(false); show(length * Number(slider.value) / 1000); });
  button.addEventListener("click", () => play(!playing));
  if (select) select.addEventListener("change", () => choose(select.value));
  choose(panels.length ? panels[0].dataset.prompt : "");
})();
